"""What every denoiser is: eps_theta(x_t, t, y) with named blocks that can be tapped, and early exit."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.nn import functional

from dcube.training.fastest import Trial


class Denoiser(nn.Module):
    """Noise predictor with K classes and a learnt null label (index K).

    A backbone sets `blocks` (names in the order of the computation) and `middle`, and writes `_run`, which
    yields (block name, feature) in that order and at last ("noise", prediction). `side` holds heads that only
    training knows (contrastive.py), by name; `aligned` is the block that "align" reads, the others read `middle`.
    `augmentation` embeds what was done to an image (augment.py), where the configuration has such changes.
    """

    blocks: tuple[str, ...]
    middle: str
    aligned: str

    def __init__(self, num_classes: int, label_width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_label = num_classes
        self.labels = nn.Embedding(num_classes + 1, label_width)
        nn.init.normal_(self.labels.weight, std=0.02)
        self.side = nn.ModuleDict()
        self.augmentation: nn.Linear | None = None

    def tell_augmentation(self, parameters: int) -> None:
        """Give the network an input for so many parameters of an augmentation; at the start it is not heeded."""
        self.augmentation = nn.Linear(parameters, self.labels.embedding_dim, bias=False)
        nn.init.zeros_(self.augmentation.weight)

    def forward(
        self, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None,
        taps: Collection[str] = (), stop: bool = False, augmentation: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:  # fmt: skip
        """Predict the noise (or x_0, or v: the schedule knows) and collect features.

        x_t: [B, C, H, W]; t: [B] int64; y: [B] int64 with K = null, or [B, K] class probabilities (a soft
        label: probabilities times the label table, eq. 7), or None for the null label; augmentation: [B, A], what
        was done to the images, None for nothing.
        Returns (noise [B, C, H, W], {block: feature}); with `stop`, the computation ends after the last of
        `taps` and the noise is None. What a side head makes of a tapped block is there as "side.NAME".
        ValueError for an unknown block.
        """
        unknown = set(taps) - set(self.blocks)
        if unknown:
            raise ValueError(f"unknown blocks {sorted(unknown)}; there are {list(self.blocks)}")
        features: dict[str, torch.Tensor] = {}
        label = self.embed_label(y, len(x_t))
        if augmentation is not None and self.augmentation is not None:
            label = label + self.augmentation(augmentation)
        for name, value in self._run(x_t, t, label):
            if name == "noise":
                return value, features
            if name in taps:
                features[name] = value
                for head in self.side if self.training else ():
                    if name == (self.aligned if head == "align" else self.middle):
                        features[f"side.{head}"] = self.side[head](self.as_map(value))
                if stop and set(taps) <= set(features):
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

    def trials(self, x_t: torch.Tensor, t: torch.Tensor) -> dict[str, Trial]:
        """Parts of the model, with inputs, that tell its speed (training/fastest.py): under "dtype", and under
        "attention" where that is a good part of the work. x_t: [B, C, H, W]; t: [B] int64.
        """
        return {"dtype": (self, (x_t, t))}

    def end_at_middle(self) -> None:
        """Let go of all that only what lies behind the middle block needs; a forward must stop there from now on."""
        self.side, self.augmentation = nn.ModuleDict(), None

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
