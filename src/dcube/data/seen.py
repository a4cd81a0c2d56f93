"""Which images a training has seen, kept with its weights: whoever begins with them must not be tested on those."""

from typing import TypeAlias

import numpy as np

Seen: TypeAlias = dict[str, str]  # key of a store -> its rows as a bit mask, hexadecimal


def mask(flags: np.ndarray) -> str:
    """[n] bool as hexadecimal digits, four rows each."""
    return np.packbits(flags).tobytes().hex()


def flags(text: str, count: int) -> np.ndarray:
    """The inverse of `mask`, [count] bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def union(one: Seen, other: Seen) -> Seen:
    """What either has seen."""
    both = {key: int(one[key], 16) | int(other[key], 16) for key in one.keys() & other.keys()}
    return {**one, **other, **{key: f"{value:0{len(one[key])}x}" for key, value in both.items()}}
