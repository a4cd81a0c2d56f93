"""What a training may spend, in time or in epochs, and what that is in steps."""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dcube.config import OptimizerConfig
from dcube.errors import DCubeError, InputError
from dcube.files import write_text
from dcube.training.log import read_log
from dcube.training.state import checkpoints

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
ENDED = "ended"  # the file that `end` leaves
USED = 0.95  # share of the time that steps are planned for: a busy machine is slower than it was when it was timed
LOOKS, LOOK_SHARE = 10, 0.2  # validations of a training at most, and the share of its time that they may take
WARMUP_SHARE = 0.1  # of a training that the warm-up of the recipe may take at most


@dataclass(frozen=True)
class Budget:
    """Seconds of training or epochs: exactly one of them."""

    seconds: float | None = None
    epochs: float | None = None

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> Self:
        """ "3min", "90s", "1h", "3" (minutes) or "20epochs"; InputError for anything else."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|min|h|epochs?)?\s*", text)
        if not found or float(found[1]) <= 0:
            raise InputError(f"{option} {text} is not a budget such as 3min, 90s, 1h or 20epochs.")
        number, unit = float(found[1]), found[2] or "min"
        return cls(epochs=number) if unit.startswith("epoch") else cls(seconds=number * UNITS[unit])

    def part(self, share: float) -> "Budget":
        """A share of it."""
        return Budget(*(None if value is None else share * value for value in (self.seconds, self.epochs)))

    def __str__(self) -> str:
        return f"{self.epochs:g} epochs" if self.seconds is None else f"{self.seconds / 60:g} min"


@dataclass(frozen=True)
class Pace:
    """Seconds of one step and of one validation, on the machine as it is."""

    step: float
    look: float


@dataclass(frozen=True)
class Length:
    """How long one training lasts: its steps, the training time after which it ends at a step boundary all the same
    (None: never), and how often it is validated.
    """

    steps: int
    seconds: float | None = None
    looks: int = LOOKS

    @property
    def look_every(self) -> int:
        """Steps between validations."""
        return math.ceil(self.steps / self.looks)

    def of(self, config: OptimizerConfig) -> OptimizerConfig:
        """The optimiser's configuration with this number of steps; a short training warms up in a tenth of it."""
        warmup = min(config.warmup_steps, int(WARMUP_SHARE * self.steps))
        return config.model_copy(update={"steps": self.steps, "epochs": None, "warmup_steps": warmup})


def length_of(budget: Budget, images: int, batch_size: int, pace: Pace | None, overhead: float = 0.0) -> Length:
    """Steps that a budget buys for a training set of `images`. pace: needed where the budget is time; overhead: seconds
    of it that are gone before the first step. DCubeError where it does not buy one.
    """
    if budget.epochs is not None:
        return Length(max(1, round(budget.epochs * images / batch_size)))
    assert budget.seconds is not None and pace is not None
    left = USED * budget.seconds - overhead
    looks = int(min(LOOKS, max(1.0, LOOK_SHARE * left / max(pace.look, 1e-9))))
    steps = int((left - looks * pace.look) / pace.step)
    if steps < 1:
        raise DCubeError(
            f"{budget.seconds:.0f} s do not suffice: {overhead:.0f} s go before the first step, a validation takes"
            f" {pace.look:.1f} s, a step {pace.step:.2f} s; give a larger --budget."
        )
    return Length(steps, max(0.0, budget.seconds - overhead), min(looks, steps))


def spent(directory: Path) -> float:
    """Training seconds up to the newest checkpoint of a training, 0 before the first."""
    found = checkpoints(directory / "checkpoint")
    reached = int(found[-1].name.removeprefix("step-")) if found else 0
    rows = [row for row in read_log(directory / "log.jsonl") if row["step"] <= reached]
    return max((row.get("seconds", 0.0) for row in rows), default=0.0)


def deadline(directory: Path, seconds: float | None) -> float | None:
    """When a sitting of a training that may take `seconds` over all sittings ends, as time.monotonic() counts; at once
    where the training has come to its `end`.
    """
    if seconds is None:
        return None
    left = 0.0 if (directory / ENDED).exists() else max(0.0, seconds - spent(directory))
    return time.monotonic() + left


def end(directory: Path) -> None:
    """Remember that a training came to the end of its time: repeated, it must not use up a rest."""
    write_text(directory / ENDED, "")
