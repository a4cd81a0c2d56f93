"""`python -m benchmarks.profile`: where the time of the program's side goes, by kind of operation."""

import argparse
import contextlib
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import Case
from benchmarks.cases import all_cases
from benchmarks.machine import describe
from benchmarks.sizes import SIZES
from benchmarks.world import World
from dcube.files import write_json
from dcube.training.runtime import pick_device

KINDS = (  # of operations, by parts of their names; the first that fits
    ("convolution", ("conv",)),
    ("batched product", ("bmm",)),  # of attention
    ("matrix product", ("mm", "linear", "scaled_dot_product", "einsum")),
    ("normalisation", ("norm",)),
    ("optimiser, EMA", ("_fused_", "_foreach_", "optimizer", "lerp")),
    ("copies, casts, joins", ("copy", "cat", "clone", "contiguous", "stack", "flip", "index", "fill", "empty")),
    ("other arithmetic", ("",)),
)
PRODUCTS = ("convolution", "batched product", "matrix product")
COLUMNS = ("case", "size", "seconds", *(name for name, _ in KINDS))
CALLS = 3  # profiled together, after one call to warm up


def kind_of(operation: str) -> str:
    """The kind of an operation of torch, as "aten::addmm"; the norms of clipping belong to the optimiser."""
    name = operation.removeprefix("aten::").lower()
    if name.startswith(("_foreach", "optimizer")):
        return "optimiser, EMA"
    return next(kind for kind, parts in KINDS if any(part in name for part in parts))


def measure(case: Case, world: World) -> dict[str, Any]:
    """{"name", "size", "seconds" of one step, "share" of its operations by kind}."""
    total: Counter[str] = Counter()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    for call, weight in case.ours(world):
        call = getattr(call, "plain", call)  # a replayed graph tells no operations
        call()
        with profile(activities=activities) as found:
            for _ in range(CALLS):
                call()
        for row in found.key_averages():
            if row.device_type != DeviceType.CPU:
                continue  # kernels by their own names: their time is that of the operations that launched them
            spent = row.self_device_time_total if world.device.type == "cuda" else row.self_cpu_time_total
            total[kind_of(row.key)] += weight * spent / 1e6 / CALLS
    seconds = sum(total.values())
    share = {kind: total[kind] / seconds for kind, _ in KINDS}
    return {"name": case.name, "size": world.size.name, "seconds": seconds, "share": share}


def products(row: dict[str, Any]) -> float:
    """Share of the time that convolutions and matrix products take."""
    return float(sum(row["share"][kind] for kind in PRODUCTS))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    return row["name"], row["size"], f"{row['seconds']:.3g}", *(f"{row['share'][kind]:.0%}" for kind, _ in KINDS)


def main() -> None:
    """Profile the cases asked for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--only", default="step", metavar="NAME", help="cases whose names begin so (default step)")
    parser.add_argument("--size", choices=SIZES, default="paper", metavar="small|paper")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps (default cpu)")
    options = parser.parse_args()
    device, size, rows = pick_device(options.device), SIZES[options.size], []
    with tempfile.TemporaryDirectory(prefix="dcube-profile-") as folder:
        world = World(size, device, Path(folder), 0)
        for case in (case for case in all_cases(size) if case.name.startswith(options.only)):
            with contextlib.redirect_stderr(io.StringIO()):  # the program's progress
                rows.append(measure(case, world))
            print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
    if not rows:
        parser.error(f"No case begins with '{options.only}'; there are {', '.join(c.name for c in all_cases(size))}.")
    print("\n".join("  ".join(line) for line in (COLUMNS, *map(cells, rows))))
    if options.json:
        write_json(options.json, {"machine": describe(device), "profile": rows})


if __name__ == "__main__":
    main()
