"""Training time: over all sittings, and without what only looks at the training."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from dcube.training.log import Log
from dcube.training.state import TrainState


@dataclass
class Watch:
    """A look at the EMA weights before the first step, every so many `minutes` of training and at the end of a
    sitting: gets (step, EMA model, extra), returns a log row. Its own time is outside the clock and the deadline.

    It must not change the weights: when it comes depends on the machine.
    """

    minutes: float
    run: Callable[[int, nn.Module, dict[str, Any]], dict[str, Any]]


class Clock:
    """Seconds of training, those of earlier sittings (`before`) included, and the moment at which this one ends.

    deadline: as time.monotonic() counts, None for no end. `paused` is what looks have taken in this sitting; it
    moves the deadline.
    """

    def __init__(self, before: float, deadline: float | None) -> None:
        self._begin, self._deadline, self.paused = time.monotonic() - before, deadline, 0.0

    @property
    def seconds(self) -> float:
        """Training time."""
        return time.monotonic() - self._begin - self.paused

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.monotonic() > self._deadline + self.paused

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time of a `with` block does not count."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.paused += time.monotonic() - start


class Looks:
    """When a `Watch` is due. A resumed sitting does not repeat the look of the step that it begins with."""

    def __init__(self, watch: Watch | None, clock: Clock, log: Log | None, state: TrainState) -> None:
        self.watch, self.clock, self.log, self.state = watch, clock, log, state
        self.seen: int | None = state.step or None
        self.number = self._number()

    def __call__(self, over: bool = False) -> None:
        """Look and log where it is time; `over`: the sitting ends."""
        step, number = self.state.step, self._number()
        if self.watch is None or self.log is None or step == self.seen:
            return
        if step == 0 or number > self.number or over:
            with self.clock.stopped():
                row = self.watch.run(step, self.state.ema.model, self.state.extra)
            self.log.write({"step": step, "seconds": round(self.clock.seconds, 3), **row})
            self.seen, self.number = step, number

    def _number(self) -> int:
        return int(self.clock.seconds / 60 // self.watch.minutes) if self.watch else 0
