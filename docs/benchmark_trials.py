"""Gather results/benchmark/trials.csv from the folders that these commands make:

    python docs/benchmark_trials.py               print the commands
    python docs/benchmark_trials.py FOLDER        read FOLDER/NAME of every trial, and write the file
"""

import csv
import sys
from pathlib import Path
from typing import Any

from dcube.files import read_json
from dcube.training.log import read_log

FILE = Path(__file__).resolve().parent.parent / "results" / "benchmark" / "trials.csv"
SETS = "lung-ct", "covid-xray", "brain-mri"
COMMAND = f"dcube benchmark {' '.join(SETS)} --budget 3min --size 64 --no-test --seeds 0 --tries 1 --jobs 2"
CHEAP = (
    "--step1-share 0.2 --set diffusion.unet.patch=4 --set diffusion.unet.widths=[64,96,128]"
    " --set features.timesteps=[50]"
)
BATCH, RATE = "--set classifier.optimizer.batch_size=16", "--set classifier.optimizer.lr=1e-3"
TRIALS = {  # name: title, system, options; those of one folder are of one command
    "cnn": ("EfficientNet-Lite0, fine-tuned", "efficientnet_lite0", ""),
    "small": ("D-Cube: small", "dcube", ""),
    "cheap": ("cheap steps", "dcube", f"{CHEAP} {BATCH}"),
    "no-cycle": (
        "cheap steps, no cycle term, twice the rate", "dcube",
        f"{CHEAP} {BATCH} --set classifier.lambda_cycle=0 {RATE}",
    ),
    "no-mirror": (
        "the same without eq. 8, in batches of 32", "dcube",
        f"{CHEAP} --set classifier.lambda_cycle=0 {RATE} --set classifier.lambda_consistency=0",
    ),
}  # fmt: skip


def row(folder: Path, name: str, data: str) -> dict[str, Any]:
    """One trial on one data set, from its cell and, of D-Cube, from the log of step 2 and the cell of step 1."""
    title, model, options = TRIALS[name]
    place = folder / name / data / "seed-0"
    cell = read_json(place / model / "configuration-0" / "cell.json")
    log = place / model / "configuration-0" / "step2" / "log.jsonl"
    cycle = [line["cycle"] for line in read_log(log) if "cycle" in line] if log.is_file() else []
    first = read_json(place / "step1" / "cell.json")["steps"] if model == "dcube" else 0
    figures = {key: round(cell["validation"][key], 4) for key in ("macro_f1", "cross_entropy")}
    return {
        "trial": title, "model": model, "options": options, "data": data, "seed": 0, "steps_step1": first or "",
        "steps_step2": cell["steps"] - first, "minutes": round(cell["seconds"] / 60, 2), **figures,
        "cycle_most": f"{max(cycle):.1e}" if cycle else "",
    }  # fmt: skip


def main() -> None:
    """Print the commands, or gather what they made."""
    if len(sys.argv) == 1:
        for name, (_, model, options) in TRIALS.items():
            print(" ".join(filter(None, (COMMAND, f"--models {model} --out trials/{name}", options))))
        return
    rows = [row(Path(sys.argv[1]), name, data) for name in TRIALS for data in SETS]
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
