"""Run cases and say what came out."""

import contextlib
import gc
import io
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Case, Side
from benchmarks.cases import all_cases
from benchmarks.machine import Flops, MatrixRates, describe, model_shapes
from benchmarks.sizes import SIZES
from benchmarks.timing import PeakMemory, interleaved, summary
from benchmarks.world import World
from dcube.errors import InputError
from dcube.files import write_json

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
COLUMNS = (
    *("case", "size", "reference s", "dcube s", "ratio", "spread", "at the rate", "matrix rate", "best product"),
    *("peak MiB", "deviation", "dtype"),
)


def run(
    name: str, only: str, repeats: int, device: torch.device, seed: int = 0, changes: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """("case", row) for every case of a size whose name begins with `only`, then ("rates", {dtype: GFLOP/s});
    `changes` are settings, key.path=value.

    InputError where none does.
    """
    size = replace(SIZES[name], overrides=(*SIZES[name].overrides, *changes))
    chosen = [case for case in all_cases(size) if case.name.startswith(only)]
    if not chosen:
        names = ", ".join(case.name for case in all_cases(size))
        raise InputError(f"No case begins with '{only}'; there are {names}.")
    with tempfile.TemporaryDirectory(prefix="dcube-benchmark-") as folder:
        world = World(size, device, Path(folder), seed)
        rates = MatrixRates(model_shapes(world.experiment.diffusion), device)
        for case in chosen:
            gc.collect()
            with contextlib.redirect_stderr(io.StringIO()):  # the program's progress
                row = measure(case, world, repeats, rates)
            yield "case", row
        found = {NAMES[dtype]: rate for dtype, rate in rates.last.items()}
        found |= {f"{NAMES[dtype]} best product": rate for dtype, rate in rates.best.items()}
        yield "rates", {name: round(rate / 1e9, 1) for name, rate in found.items()}


def measure(case: Case, world: World, repeats: int, rates: MatrixRates) -> dict[str, Any]:
    """One row of the JSON. Each side's first call is its warm-up and gives the deviation and the peak memory."""
    world.data, world.frozen, world.exact, world.weights  # noqa: B018 - made before memory is looked at
    with PeakMemory(world.device) as ours_peak:
        ours = case.ours(world)
        answer = [call() for call, _ in ours][0]
    with PeakMemory(world.device) as reference_peak:
        reference = case.reference(world)
        expected = [call() for call, _ in reference][0]
    deviation = case.deviation(answer, expected, world)
    del answer, expected
    repeats = min(repeats, case.repeats or repeats)
    times = interleaved(reference, ours, repeats, world.device)
    (slow, slow_spread), (fast, fast_spread) = (summary(side) for side in times)
    how = dict.fromkeys(getattr(call, "how", "") for call, _ in ours)  # before its graph is put aside
    flops, plain_flops = count(ours), count(reference)
    best = rates.seconds_for(flops)
    return {
        "name": case.name, "size": world.size.name, "reference_s": slow, "dcube_s": fast, "ratio": slow / fast,
        "share_of_matrix_rate": best / fast if flops else None,
        "share_of_best_product": rates.seconds_at_best(flops) / fast if flops else None,
        "peak_mib": ours_peak.mib, "deviation": deviation,
        "reference_spread_s": slow_spread, "dcube_spread_s": fast_spread, "repeats": repeats,
        "reference_peak_mib": reference_peak.mib, "gflop": sum(flops.values()) / 1e9,
        "reference_gflop": sum(plain_flops.values()) / 1e9,
        "ratio_at_matrix_rate": rates.seconds_for(plain_flops) / best if flops else None,
        "dtype": NAMES[max(flops, key=lambda dtype: flops[dtype])] if flops else None,
        "note": "; ".join(filter(None, (case.note, *how))),
    }  # fmt: skip


def count(side: Side) -> dict[torch.dtype, float]:
    """Operations of a side per dtype, its parts weighted as their times are; compiled code is run as it was written."""
    total: dict[torch.dtype, float] = {}
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        for call, weight in side:
            with Flops() as counter:
                getattr(call, "plain", call)()  # a replayed graph tells no operations
            for dtype, flops in counter.by_dtype.items():
                total[dtype] = total.get(dtype, 0.0) + weight * flops
    return total


def report(rows: list[dict[str, Any]]) -> str:
    """The table, columns aligned."""
    table = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    lines = (zip(line, widths, strict=True) for line in table)
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(line)) for line in lines
    )


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table; the spread is that of the ratio, from the extremes of both sides."""
    (slow_low, slow_high), (fast_low, fast_high) = row["reference_spread_s"], row["dcube_spread_s"]
    share, peak, bound = row["share_of_matrix_rate"], row["peak_mib"], row["ratio_at_matrix_rate"]
    return (
        row["name"], row["size"], f"{row['reference_s']:.4g}", f"{row['dcube_s']:.4g}", f"{row['ratio']:.2f}",
        f"{slow_low / fast_high:.2f}..{slow_high / fast_low:.2f}", "-" if bound is None else f"{bound:.2f}",
        "-" if share is None else f"{share:.0%}", "-" if share is None else f"{row['share_of_best_product']:.0%}",
        "-" if peak is None or math.isnan(peak) else f"{peak:.0f}", f"{row['deviation']:.1e}", row["dtype"] or "-",
    )  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]], rates: dict[str, dict[str, float]], device: torch.device) -> None:
    """The JSON file."""
    write_json(path, {"machine": describe(device) | {"matrix_gflops": rates}, "cases": rows})
