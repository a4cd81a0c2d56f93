"""What every denoiser is: eps_theta(x_t, t, y) with named blocks that can be tapped, and early exit."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn import functional


class Denoiser(nn.Module):
    """Noise predictor with K classes and a learnt null label (index K).

    A backbone sets `blocks` (names in the order of the computation) and `middle`, and writes `_run`, which
    yields (block name, feature) in that order and at last ("noise", prediction).
    """

    blocks: tuple[str, ...]
    middle: str

    def __init__(self, num_classes: int, label_width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_label = num_classes
        self.labels = nn.Embedding(num_classes + 1, label_width)
        nn.init.normal_(self.labels.weight, std=0.02)

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None,
        taps: Collection[str] = (), stop: bool = False,
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:  # fmt: skip
        """Predict the noise and collect features.

        x_t: [B, C, H, W]; t: [B] int64; y: [B] int64 with K = null, or [B, K] class probabilities (a soft
        label: probabilities times the label table, eq. 7), or None for the null label.
        Returns (noise [B, C, H, W], {block: feature}); with `stop`, the computation ends after the last of
        `taps` and the noise is None. ValueError for an unknown block.
        """
        unknown = set(taps) - set(self.blocks)
        if unknown:
            raise ValueError(f"unknown blocks {sorted(unknown)}; there are {list(self.blocks)}")
        features: dict[str, torch.Tensor] = {}
        for name, value in self._run(x_t, t, self.embed_label(y, len(x_t))):
            if name == "noise":
                return value, features
            if name in taps:
                features[name] = value
                if stop and len(features) == len(set(taps)):
                    break
        return None, features

    def embed_label(self, y: torch.Tensor | None, batch: int) -> torch.Tensor:
        """Label embedding [B, D] of hard, soft or null labels."""
        if y is None:
            y = self.labels.weight.new_full((batch,), self.null_label, dtype=torch.long)
        if y.is_floating_point():
            table = self.labels.weight[: self.num_classes]
            return (y[:, :, None] * table).sum(1)  # no matmul: autocast would round a soft label, not a hard one
        embedded: torch.Tensor = self.labels(y)
        return embedded

    def as_map(self, feature: torch.Tensor) -> torch.Tensor:
        """A tapped feature as [B, C, h, w]."""
        return feature

    def _run(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        raise TypeError("a backbone writes its own _run")


def timestep_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal embedding [B, width] of t [B] (Vaswani et al. 2017, as in DDPM)."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * frequencies
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))  # an odd width: one zero
