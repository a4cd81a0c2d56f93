"""Run by the test of a full disk in a mount namespace of its own: fits on a device that is too small, then is not."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from tiny_fit import PHANTOM, done, refused

from dcube.training.state import load_weights


def fit_on_small_devices(place: Path, recipe: Path, sizes: list[str]) -> None:
    """Fit on a device of the first size; enlarge it to the next after each refusal."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sizes[0]}", "tmpfs", str(place)], check=True)
    fit = ("fit", PHANTOM, "--out", place / "run", "--recipe", recipe)
    for larger in sizes[1:]:
        sentence = refused(*fit)
        print(sentence, flush=True)
        assert "No space left on the device" in sentence and "repeat the same command" in sentence
        final = [path for path in (place / "run").rglob("*.*") if ".tmp" not in str(path)]
        for file in final:  # complete, or not there
            if file.suffix == ".safetensors":
                load_weights(file)
            elif file.suffix == ".json":
                json.loads(file.read_text())
        subprocess.run(["mount", "-o", f"remount,size={larger}", str(place)], check=True)
    done(*fit)
    print(hashlib.sha256((place / "run/evaluation/metrics.json").read_bytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    fit_on_small_devices(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
