"""Interleaved timings of two sides in one process, and the memory one of them takes."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Part = tuple[Callable[[], Any], float]  # a call, and how often it counts


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of one call; on a GPU until all its work is done."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait for the work that a GPU still has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleaved(
    first: Sequence[Part], second: Sequence[Part], repeats: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Times A B A B ... of two sides, [repeats] each: the weighted sum of a side's parts. Nothing is warmed up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for parts, held in zip((first, second), times, strict=True):
            held.append(sum(weight * seconds(call, device) for call, weight in parts))
    return times


def summary(times: Sequence[float]) -> tuple[float, list[float]]:
    """(median, [least, most])."""
    return statistics.median(times), [min(times), max(times)]


class PeakMemory:
    """Growth of the peak memory inside the `with` block, `mib`.

    On a GPU what torch allocated there. Else resident memory of the process, over what it held at the start (Linux:
    the kernel's own peak, set back first; None where the system keeps none that can be set back).
    """

    mib: float | None = None

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def __enter__(self) -> "PeakMemory":
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20
        else:
            _return_free_memory()
            self.before = _resident("VmRSS") or 0.0
            self.resettable = _reset_peak()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.cuda:
            self.mib = torch.cuda.max_memory_allocated() / 2**20 - self.before
        elif self.resettable and (peak := _resident("VmHWM")) is not None:
            self.mib = max(0.0, peak - self.before)


def _resident(field: str) -> float | None:
    """VmRSS or VmHWM of this process, MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    values = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(values[field].split()[0]) / 1024 if field in values else None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Give freed memory back, or what an earlier case left would hide what this one takes."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
        if trim is not None:
            trim(0)
