"""A trial at the start of a training: which dtype and which attention are fast on this machine."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

Trial: TypeAlias = tuple[nn.Module, tuple[Any, ...]]  # a part of a model and its inputs, the first a tensor
MARGIN = 1.15  # by which the hardware's default must be beaten, so that noise does not decide
SECONDS = 0.5  # of one comparison
ROUNDS = 3  # of a comparison at least


@dataclass(frozen=True)
class Choice:
    """What a training runs in: the dtype of its forward passes and the kind of its attention."""

    dtype: torch.dtype
    attention: str = "sdpa"
    milliseconds: dict[str, float] | None = None  # of the trial, None without one


def fastest(trials: dict[str, Trial], dtypes: list[torch.dtype], kinds: list[str]) -> Choice:
    """The fastest of `dtypes`, and then of the attention `kinds`, on a CPU, by forward and backward passes of parts of
    the model. The first of each is left only for something `MARGIN` times faster.

    trials: "dtype" and "attention", each where it is there and where there is a choice.
    """
    times: dict[str, float] = {}
    dtype, kind = dtypes[0], kinds[0]
    if len(dtypes) > 1 and "dtype" in trials:
        dtype = dtypes[_compare("dtype", [(trials["dtype"], d, kind) for d in dtypes], times)]
    if len(kinds) > 1 and "attention" in trials:
        kind = kinds[_compare("attention", [(trials["attention"], dtype, k) for k in kinds], times)]
    return Choice(dtype, kind, times or None)


def set_attention(model: nn.Module, kind: str) -> None:
    """Tell every module that has an `attention_kind`."""
    for module in model.modules():
        if hasattr(module, "attention_kind"):
            module.attention_kind = kind  # type: ignore[assignment]


def _compare(what: str, candidates: list[tuple[Trial, torch.dtype, str]], times: dict[str, float]) -> int:
    """Number of the fastest candidate, 0 unless another is `MARGIN` times faster; adds milliseconds to `times`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # time of one thread's own work: other processes hardly change it
    try:
        taken = _interleaved([passes(*candidate) for candidate in candidates])
    finally:
        torch.set_num_threads(threads)
    least = [min(held) for held in taken]
    for (_, dtype, kind), seconds in zip(candidates, least, strict=True):
        times[f"{what}: {str(dtype).removeprefix('torch.')} {kind}"] = round(1000 * seconds, 3)
    winner = min(range(len(least)), key=least.__getitem__)
    return winner if least[0] >= MARGIN * least[winner] else 0


def _interleaved(runs: list[Callable[[], None]]) -> list[list[float]]:
    """Seconds of this thread's work for every run, in turns, so that what disturbs one disturbs all."""
    taken: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.thread_time() + SECONDS
    while time.thread_time() < end or len(taken[0]) < ROUNDS:
        for run, held in zip(runs, taken, strict=True):
            start = time.thread_time()
            run()
            held.append(time.thread_time() - start)
    return taken


def passes(
    trial: Trial, dtype: torch.dtype, kind: str, change: Callable[[nn.Module], None] | None = None
) -> Callable[[], None]:
    """A forward and a backward pass of a copy in training, which leave nothing behind in the model; `change` is done
    to the copy first.
    """
    module, inputs = copy.deepcopy(trial[0]).train().requires_grad_(True), trial[1]
    set_attention(module, kind)
    if change:
        change(module)

    def run() -> None:
        module.zero_grad(set_to_none=True)
        with torch.autocast(inputs[0].device.type, dtype=dtype, enabled=dtype != torch.float32):
            out = module(*inputs)
            out = out[0] if isinstance(out, tuple) else out
        out.float().square().mean().backward()

    return run
