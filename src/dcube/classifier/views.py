"""Image and mirror image in one forward, their batch statistics kept apart."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from types import MethodType

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def apart(model: nn.Module, views: int) -> Iterator[None]:
    """Inside, the batch of `model` is `views` equal parts side by side, and what a forward does to it is what one
    forward per part would have done, one after the other.

    That is a matter of batch normalisation alone: every layer in training mode normalises each part by the part's own
    statistics, and its running statistics take in the first part, then the second. (One forward is faster than several
    small ones; dropout draws its own numbers for every image either way.)
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training] if views > 1 else []
    try:
        for layer in layers:
            layer.forward = MethodType(_in_parts(views), layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance's; the class keeps its own


@cache
def _in_parts(views: int) -> Callable[[_BatchNorm, torch.Tensor], torch.Tensor]:
    """A forward for layers; one function for all steps, so that a compiled model stays compiled."""

    def forward(layer: _BatchNorm, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([type(layer).forward(layer, part) for part in x.chunk(views)])

    return forward
