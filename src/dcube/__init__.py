"""D-Cube: medical image classification with the inner features of a diffusion model (arXiv 2411.11087)."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "fit": "dcube.api",
    "load": "dcube.api",
    "DCube": "dcube.api",
    "GaussianitySelector": "dcube.features.selection",
}

__all__ = ["DCube", "GaussianitySelector", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: `import dcube` itself loads no heavy library."""
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'dcube' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
