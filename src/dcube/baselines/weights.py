"""Where a network's first weights come from: by name where the hub answers, from a file always, else random."""

import contextlib
import math
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import torch.nn.functional as F
from torch import nn

from dcube.errors import InputError
from dcube.features.subnet import read_tensors

WEIGHTS = ("auto", "hub", "none")  # and a file, and "offline" for the one model that has a package
Built = TypeVar("Built")


def named_or_random(
    name: str, weights: str, named: Callable[[], Built], random: Callable[[], Built], origin: str
) -> tuple[Built, str]:
    """A network by its name, and its source in words. weights: "hub" raises InputError where the download fails,
    "auto" falls back on random ones and says so loudly, "none" asks for random ones.
    """
    if weights == "none":
        return random(), "random"
    if weights not in WEIGHTS:
        raise InputError(f"There are no weights '{weights}' for {name}; use one of {', '.join(WEIGHTS)} or a file.")
    try:
        with patience():
            return named(), origin
    except Exception as error:
        built, cause = random(), error.__cause__ or error  # what is wrong without weights too is told as it is
        reason = f"the weights of {name} could not be downloaded ({type(cause).__name__})"
        if weights == "hub":
            raise InputError(f"{reason[0].upper()}{reason[1:]}; give a file, or 'none' for random weights.") from error
        return built, loud(f"RANDOM: {reason}")


def loud(note: str) -> str:
    """A source that a reader must not miss: warned about, and returned for the table."""
    warnings.warn(note, stacklevel=3)
    return note


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Downloads with the libraries' own retries; only what is cached where the hub's name cannot even be resolved."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _resolves(urlsplit(constants.ENDPOINT).hostname or "")
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _resolves(host: str) -> bool:
    """Whether a host has an address; a proxy answers for hosts that have none here."""
    if "https" in getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def file_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors or .pth file; InputError where it is missing or cannot be read safely."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no weights file '{path}'.")
    tensors = read_tensors(path)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"The weights file '{path}' holds more than tensors; give a state dict.")
    return tensors


def load_into(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path, head: str) -> None:
    """Load every tensor but those of the head (names that begin with `head`), which is left as it was. Position tables
    of another input size are resized. InputError where anything else lacks or differs in shape.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(head)}
    found = {name: tensors[name] for name in wanted if name in tensors}
    for name in found:
        if "pos" in name and found[name].shape != wanted[name].shape and found[name].ndim == 3:
            found[name] = resize_positions(found[name], wanted[name].shape[1])
    lacking = [name for name in wanted if getattr(found.get(name), "shape", None) != wanted[name].shape]
    if lacking:
        raise InputError(
            f"The weights file '{path}' does not fit this model: {len(lacking)} tensors lack, such as {lacking[0]}."
        )
    model.load_state_dict(found, strict=False)


def resize_positions(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """A position table [1, L, D] for `tokens` positions: bicubic over the square grid; class tokens stay in front."""
    prefix = table.shape[1] - math.isqrt(table.shape[1]) ** 2
    side, new = math.isqrt(table.shape[1]), math.isqrt(tokens - prefix)
    if side == 0 or new * new != tokens - prefix:
        return table
    grid = table[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
