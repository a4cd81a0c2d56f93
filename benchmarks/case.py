"""A case: two sides that do the same work, built when their turn comes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import Part
from benchmarks.world import World

Side = Sequence[Part]


@dataclass(frozen=True)
class Case:
    """`ours` and `reference` build a side: its parts, each a call and how often it counts in the time. `deviation`
    compares the results of the first calls of both sides' first parts, made on the same weights and images, or where
    these cannot agree something of the world's that must.
    """

    name: str
    ours: Callable[[World], Side]
    reference: Callable[[World], Side]
    deviation: Callable[[Any, Any, World], float]
    note: str = ""
    repeats: int | None = None  # at most so many; None: as many as asked for
