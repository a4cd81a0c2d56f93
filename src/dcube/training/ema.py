"""Exponential moving average of the weights."""

import copy

import torch
from torch import nn


def ema_decay(decay: float, step: int) -> float:
    """Decay used at update `step` (0-based): warmed up, or a short run would keep its initialisation."""
    return min(decay, (1 + step) / (10 + step))


class EMA:
    """A frozen copy whose weights follow e <- d * e + (1 - d) * w; buffers (BatchNorm) are copied, and what the model
    does not train is shared with it.

    The decay depends on the step alone and no counter lives on the device, so an update neither
    depends on history nor waits for a GPU.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        frozen = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after the optimiser's step `step` (0-based)."""
        weight = 1 - ema_decay(self.decay, step)
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(mine, theirs) for mine, theirs in pairs if theirs.requires_grad]
        torch._foreach_lerp_([mine for mine, _ in trained], [theirs for _, theirs in trained], weight)
        both = list(zip(self.model.buffers(), model.buffers(), strict=True))
        for dtype in {theirs.dtype for _, theirs in both}:  # a list of one dtype is copied at once
            alike = [pair for pair in both if pair[1].dtype == dtype]
            torch._foreach_copy_([mine for mine, _ in alike], [theirs for _, theirs in alike])
