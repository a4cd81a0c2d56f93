"""What a result may depend on besides settings and data: versions, machine, commit."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import dcube

UNITS = "avx512_bf16", "amx_bf16"  # of a processor that multiplies bf16
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "accelerate", "pillow")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, device and time, as environment.json has them."""
    return {
        "dcube": dcube.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "device": device,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def cpu_name() -> str:
    """The processor's name and its vector units of interest, as Linux knows them; else the architecture."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    rows = (line.partition(":") for line in info.read_text().splitlines())
    facts = {key.strip(): value.strip() for key, _, value in rows}
    units = [unit for unit in UNITS if unit in facts.get("flags", "").split()]
    return " ".join([facts.get("model name", platform.machine()), *units])


def git_commit() -> str | None:
    """Commit of the program's own checkout, with "-dirty" where it was changed; None for an installed copy."""
    here = Path(__file__).resolve()
    try:
        for arguments in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            answer = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, timeout=10)
            if answer.returncode:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git on this machine
    return answer.stdout.strip()
