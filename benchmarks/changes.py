"""`python -m benchmarks.changes`: what each speed-up brings on its own, the program with it against without."""

import argparse
import contextlib
import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Side
from benchmarks.cases import predict, sample, step1, step2
from benchmarks.machine import describe
from benchmarks.sizes import SIZES, Size
from benchmarks.timing import interleaved, summary
from benchmarks.world import World
from dcube.files import write_json
from dcube.training.runtime import pick_device

COLUMNS = ("change", "size", "without s", "with s", "ratio", "spread")
PLAIN = ("diffusion.optimizer.dtype=fp32", "runtime.attention=sdpa")
BF16 = "diffusion.optimizer.dtype=bf16"
COMPILED, UNCOMPILED, GRAPHS = "runtime.compile=always", "runtime.compile=never", "runtime.graphs=auto"


@dataclasses.dataclass(frozen=True)
class Change:
    """A case of the program under two sets of settings, all else being what the size has."""

    name: str
    side: Callable[[World], Side]
    without: tuple[str, ...]
    with_it: tuple[str, ...]


def classifier(world: World) -> Side:
    """Step 2 with the CNN of the size, without the cost of making a cache."""
    return step2.ours(world.experiment, world)[:1]


STEPS, CACHED, LIVE = "diffusion.sample_steps=", "features.cache_gb=8", "features.cache_gb=0"
NO_CYCLE, QUARTER, WHOLE = (
    "classifier.lambda_cycle=0", "classifier.cycle_fraction=0.25", "classifier.cycle_fraction=1",
)  # fmt: skip
CHANGES = (
    Change("step1: bf16", step1.ours, PLAIN, (BF16, "runtime.attention=sdpa")),
    Change("step1: bf16 and explicit attention", step1.ours, PLAIN, (BF16, "runtime.attention=explicit")),
    Change("step1: what the trial at the start chooses", step1.ours, PLAIN, ()),
    Change("step2: features from the cache", classifier, (NO_CYCLE, LIVE), (NO_CYCLE, CACHED)),
    Change("step2: cycle term on a quarter", classifier, (WHOLE, CACHED), (QUARTER, CACHED)),
    Change("step2: no cycle term", classifier, (WHOLE, CACHED), (NO_CYCLE, CACHED)),
    Change("step2: what the trial at the start chooses", classifier, (NO_CYCLE, "classifier.optimizer.dtype=fp32"),
           (NO_CYCLE, "classifier.optimizer.dtype=auto")),
    Change("compiled: step1", step1.ours, (UNCOMPILED,), (COMPILED,)),
    Change("compiled: step2", classifier, (NO_CYCLE, UNCOMPILED), (NO_CYCLE, COMPILED)),
    Change("graph: step1", step1.ours, (COMPILED, "runtime.graphs=never"), (COMPILED, GRAPHS)),
    Change("graph: step2", classifier, (NO_CYCLE, UNCOMPILED, "runtime.graphs=never"), (NO_CYCLE, UNCOMPILED, GRAPHS)),
    Change("extract: bf16", lambda world: [(step2.extraction(world, 8), 1.0)], ("features.dtype=fp32",),
           ("features.dtype=bf16",)),
    Change("predict-1: bf16", partial(predict.ours, 1), ("features.predict_dtype=fp32",),
           ("features.predict_dtype=bf16",)),
    Change("sample: 20 steps instead of 50", sample.ours, (STEPS + "50",), (STEPS + "20",)),
)  # fmt: skip


def measure(change: Change, size: Size, repeats: int, device: torch.device) -> dict[str, Any] | None:
    """Both settings interleaved, after a first call of each; None where what is asked for does not work here."""
    with contextlib.ExitStack() as held:
        sides = []
        for settings in (change.without, change.with_it):
            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="dcube-changes-"))
            changed = dataclasses.replace(size, overrides=(*size.overrides, *settings))
            sides.append(change.side(World(changed, device, Path(folder))))
            for call, _ in sides[-1]:
                call()
        if COMPILED in change.with_it and all(call.runtime.compile != "always" for call, _ in sides[-1]):  # type: ignore[attr-defined]
            return None
        if GRAPHS in change.with_it and all(call.passes.recording is None for call, _ in sides[-1]):  # type: ignore[attr-defined]
            return None
        without, with_it = map(summary, interleaved(sides[0], sides[1], repeats, device))
    return {
        "name": change.name, "size": size.name, "without_s": without[0], "with_s": with_it[0],
        "ratio": without[0] / with_it[0], "without_spread_s": without[1], "with_spread_s": with_it[1],
    }  # fmt: skip


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    (slow_low, slow_high), (fast_low, fast_high) = row["without_spread_s"], row["with_spread_s"]
    return (
        row["name"], row["size"], f"{row['without_s']:.4g}", f"{row['with_s']:.4g}", f"{row['ratio']:.2f}",
        f"{slow_low / fast_high:.2f}..{slow_high / fast_low:.2f}",
    )  # fmt: skip


def main() -> None:
    """Measure every change and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.changes", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="changes whose names begin so")
    parser.add_argument("--size", choices=SIZES, default="paper", metavar="small|paper")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed calls per side (default 5)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps (default cpu)")
    options = parser.parse_args()
    device, rows = pick_device(options.device), []
    chosen = [change for change in CHANGES if change.name.startswith(options.only)]
    if not chosen:
        parser.error(f"No change begins with '{options.only}'; there are {'; '.join(c.name for c in CHANGES)}.")
    for change in chosen:
        with contextlib.redirect_stderr(io.StringIO()):  # the program's progress
            row = measure(change, SIZES[options.size], options.repeats, device)
        if row is None:
            print(f"{change.name}: does not work here, left out", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
        if options.json:  # after every change: all of them take a quarter of an hour
            write_json(options.json, {"machine": describe(device), "changes": rows})
    print("\n".join("  ".join(line) for line in (COLUMNS, *map(cells, rows))))


if __name__ == "__main__":
    main()
