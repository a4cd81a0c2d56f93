"""torch.compile of the parts that a model repeats, where it works and pays."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dcube.training.fastest import MARGIN, Trial, passes
from dcube.training.graphs import Recorder, waits

ROUNDS = 10  # of the trial
SHORT = 80.0  # seconds of passes below which no trial is made: half of them saved would not pay for compiling twice
RECOMPILATIONS = 64  # of one function: every width and image size is a graph of its own


@dataclass(frozen=True)
class Gain:
    """What a trial gave: seconds of a pass as it is and compiled, and of compiling; or what failed."""

    eager: float = 0.0
    compiled: float = 0.0
    cost: float = 0.0
    failure: str = ""

    def pays(self, steps: int, copies: int = 1) -> bool:
        """Whether it is clearly faster, and in `steps` steps of `copies` such passes wins back what compiling costs:
        twice the trial's, for a model has a second kind of part (blocks with a skip, batch statistics apart).
        """
        saved = self.eager - self.compiled
        return not self.failure and self.eager >= MARGIN * self.compiled and saved * copies * steps > 2 * self.cost

    def milliseconds(self) -> dict[str, float]:
        """Its times, for the log."""
        times = {"as it is": self.eager}
        if self.cost:
            times |= {"compiled": self.compiled, "compiling": self.cost}
        return {f"compile: {name}": round(1000 * seconds, 3) for name, seconds in times.items()}


def compiled_parts(model: nn.Module) -> list[nn.Module]:
    """The parts that are compiled, each by itself: blocks of one kind share what was compiled for the first of them,
    so that it takes seconds where a whole network takes minutes. A module says so by its attribute `compiles`.
    """
    return [module for module in model.modules() if getattr(module, "compiles", False)]


def compile_parts(model: nn.Module, strict: bool = False) -> None:
    """Compile them, in place; names of weights stay what they are. A part that cannot be compiled after all runs
    uncompiled, unless `strict`. Random numbers (dropout) are those of the uncompiled model.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    dynamo.suppress_errors = not strict
    dynamo.recompile_limit = max(RECOMPILATIONS, dynamo.recompile_limit)
    inductor.fallback_random = True
    for part in compiled_parts(model):
        part.compile(dynamic=False)


def try_compiled(
    trial: Trial, dtype: torch.dtype, kind: str, device: torch.device, images: int, total: float = math.inf,
    record: Recorder | None = None,
) -> Gain:  # fmt: skip
    """Forward and backward passes of a part of the model, as it is and compiled, in turns, on `images` images.

    trial: a part of the model and its inputs (training/fastest.py). `total`: how many such passes the training has;
    where they take less than SHORT nothing is compiled. `record`: what the training records its steps with, if it
    does; kernels are then all that counts, not how long it takes to launch them.
    """
    try:
        module, inputs = trial
        times = max(1, images // len(inputs[0]))
        inputs = _map(lambda x: x.repeat(times, *[1] * (x.ndim - 1)).to(device), inputs)
        eager = passes((module, inputs), dtype, kind)
        _seconds(eager, device)  # the device's libraries are loaded on its account
        eager = _recorded(eager, device, record)
        once = min(_seconds(eager, device) for _ in range(2))
        if once * total < SHORT:
            return Gain(once, once)
        compiled = passes((module, inputs), dtype, kind, partial(compile_parts, strict=True))
        cost = _seconds(compiled, device)
        compiled = _recorded(compiled, device, record)
        both = [(_seconds(eager, device), _seconds(compiled, device)) for _ in range(ROUNDS)]
    except Exception as error:  # whatever a compiler may raise: the model runs without
        return Gain(failure=f"{type(error).__name__}: {error}".splitlines()[0])
    found = [statistics.median(side) for side in zip(*both, strict=True)]
    return Gain(found[0], found[1], cost)


def _recorded(run: Callable[[], None], device: torch.device, record: Recorder | None) -> Callable[[], None]:
    if record is None:
        return run
    with waits(device) as found:
        run()  # once more: what is set up at the second call
    if found:
        return run
    try:
        return record(run)
    except Exception:  # its steps will not be recorded either
        return run


def still_compiles(trial: Trial, dtype: torch.dtype, kind: str, device: torch.device) -> str:
    """One compiled pass, for a training that goes on elsewhere: what failed, or nothing."""
    try:
        given = trial[0], _map(lambda x: x.to(device), trial[1])
        passes(given, dtype, kind, partial(compile_parts, strict=True))()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _map(change: Callable[[torch.Tensor], torch.Tensor], inputs: Any) -> Any:
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    return type(inputs)(_map(change, x) for x in inputs)
