"""What a result may depend on besides settings and data: versions, machine, commit."""

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import dcube

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "accelerate", "pillow")


def environment(device: str) -> dict[str, Any]:
    """Versions, machine, device and time, as environment.json has them."""
    return {
        "dcube": dcube.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "device": device,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


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
