"""Independent units of a study, side by side in processes of their own."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from dcube.training.runtime import limit_threads

Unit = TypeVar("Unit")


def run_units(work: Callable[[Unit], Any], units: Sequence[Unit], jobs: int, threads: int = 1) -> None:
    """work(unit) for every unit, `jobs` at a time with `threads` of torch each; a line for each that ends.

    `work` and the units must be importable and plain: each process starts afresh, and ends with this one however that
    is ended. The first failure is raised after the running ones have ended; what was done stays done, for each unit
    keeps its results itself.
    """
    if jobs == 1:
        limit_threads(threads)
        for number, unit in enumerate(units, 1):
            work(unit)
            print(f"{number}/{len(units)} {unit}", flush=True)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(threads,)) as pool:
        running = {pool.submit(work, unit): unit for unit in units}
        try:
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                print(f"{number}/{len(units)} {running[done]}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def tidy(directory: Path) -> None:
    """Remove what only an unfinished training needs."""
    for name in ("checkpoint", "tensorboard", "samples"):
        for left_over in list(directory.rglob(name)):
            shutil.rmtree(left_over, ignore_errors=True)
    for name in ("features-*.f16", "best.safetensors"):
        for file in directory.rglob(name):
            file.unlink()


def _begin(threads: int) -> None:
    """In a process of its own: its threads, and an end when the one that started it ends without a word."""
    limit_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
