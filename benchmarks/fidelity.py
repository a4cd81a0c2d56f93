"""`python -m benchmarks.fidelity RUN --out DIR`: whether the fast sampler draws what the 1000-step sampler draws.

2,000 images of the slow sampler under two seeds are 4 million forward passes; what is drawn is kept in DIR, so that
the command can be repeated until it is through.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from dcube.diffusion.train import load_diffusion
from dcube.errors import DCubeError
from dcube.experiments.fidelity import compare_samplers
from dcube.files import write_json
from dcube.training.runtime import pick_device

COLUMNS = (
    "sampler", "steps", "dtype", "pixels", "images", "to the 1000 steps", "between two seeds of these", "allowed",
    "within",
)  # fmt: skip


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per number of steps of what `compare_samplers` found."""
    shared = {key: value for key, value in found.items() if key != "fast"}
    return [shared | {"steps": int(steps)} | distances for steps, distances in found["fast"].items()]


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    distances = (f"{row[key]:.2f}" for key in ("to_a", "a_to_b", "bound"))
    return (
        row["sampler"], str(row["steps"]), row["dtype"], str(row["image_size"]), str(row["n"]), *distances,
        "yes" if row["within"] else "no",
    )  # fmt: skip


def main() -> None:
    """Print the distances and write them to DIR/fidelity.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("run", type=Path, help="a run with step 1, or a model.safetensors of one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--n", type=int, default=2000, help="images of each set")
    parser.add_argument("--steps", type=int, nargs="+", default=[20], help="of the fast sampler; several are compared")
    parser.add_argument("--sampler", choices=("sde", "dpm", "ddim"), default="sde")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="fp32", help="of the fast sampler")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of torch on a CPU (default: all cores)")
    options = parser.parse_args()
    if options.n < 2 or min(options.steps) < 1 or options.threads < 0:
        parser.error("--n must be at least 2, --steps at least 1, --threads at least 0")
    if options.threads:
        torch.set_num_threads(options.threads)
    weights = options.run if options.run.is_file() else options.run / "diffusion" / "model.safetensors"
    try:
        device = pick_device(options.device)
        diffusion = load_diffusion(weights, device)
        diffusion.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        found = compare_samplers(
            diffusion, options.n, tuple(options.steps), options.out,
            options.seed, options.sampler, options.dtype, device,
        )  # fmt: skip
    except DCubeError as error:
        parser.error(str(error))
    rows = rows_of(found)
    write_json(options.out / "fidelity.json", {"machine": describe(device), "fidelity": rows})
    print("\n".join("  ".join(line) for line in (COLUMNS, *map(cells, rows))))


if __name__ == "__main__":
    main()
