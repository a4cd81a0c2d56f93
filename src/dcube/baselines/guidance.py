"""DiffMIC's dual-granularity guidance (Yang et al., MICCAI 2023), after GMIC (Shen et al., MedIA 2021).

A global network makes a saliency map per class; the most salient crops go through a local network and are pooled by
gated attention. Global and local logits are averaged.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from dcube.baselines.backbones import Builder, Request, timm_features
from dcube.baselines.base import Parts, System
from dcube.features.subnet import SubNetwork
from dcube.training.runtime import full_precision

CROPS, HIDDEN, TOP_SHARE = 6, 128, 1.0
PATCH_OF_SIZE = 32 / 224  # side of a crop, as a share of the image's
SMALLEST_PATCH = 16  # pixels: half the stride of the usual networks
SMALLEST_GRID = 4  # cells; a coarser saliency map is interpolated, else few crops could differ
FLAT = 1e-5  # relative differences that are rounding, not saliency


class Guided(NamedTuple):
    """Logits [B, K] of the fused, the global and the local prediction."""

    fused: torch.Tensor
    coarse: torch.Tensor
    fine: torch.Tensor


class Guidance(System):
    """The guidance network, and a system of its own.

    make: returns a fresh backbone, images [B, C, S, S] in [0, 1] -> map [B, D, s, s]; called twice.
    """

    def __init__(self, make: Callable[[], SubNetwork], num_classes: int, crops: int = CROPS) -> None:
        super().__init__()
        self.coarse, self.fine = make(), make()
        width, self.crops = self.coarse.width, crops
        self.saliency = nn.Conv2d(width, num_classes, 1, bias=False)
        self.attention = GatedAttention(width, HIDDEN)
        self.classify = nn.Linear(width, num_classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.predict(images).fused

    def predict(self, images: torch.Tensor) -> Guided:
        """Fused, global and local logits."""
        saliency = self.saliency(self.coarse(images))                              # [B, K, s, s]
        coarse = top_share(saliency, TOP_SHARE)                                    # [B, K]
        crops = self.cut(images, saliency.detach())                                # [B, n, C, p, p]
        fine = self.fine(crops.flatten(0, 1)).mean((2, 3))                         # [B * n, D]
        fine = self.classify(self.attention(fine.unflatten(0, crops.shape[:2])))   # [B, K]
        return Guided((coarse + fine) / 2, coarse, fine)

    def cut(self, images: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        """The most salient crops [B, crops, C, p, p] of images [B, C, S, S]."""
        size = images.shape[-1]
        patch = min(size, max(SMALLEST_PATCH, round(size * PATCH_OF_SIZE)))
        if saliency.shape[-1] < SMALLEST_GRID:
            grid = (SMALLEST_GRID, SMALLEST_GRID)
            saliency = F.interpolate(saliency, grid, mode="bilinear", align_corners=False)
        cells = saliency.shape[-1]
        corners = greedy_windows(full_precision(saliency), max(1, round(patch * cells / size)), self.crops)
        return crop(images, (corners * size / cells).round().long().clamp(max=size - patch), patch)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
    ) -> tuple[torch.Tensor, Parts]:
        """Cross-entropy of the fused logits."""
        loss = F.cross_entropy(full_precision(self(images)), labels)
        return loss, {"guidance": loss.detach()}


def top_share(maps: torch.Tensor, share: float) -> torch.Tensor:
    """Mean of the largest `share` (0 .. 1] of each map's values. maps: [B, K, h, w] -> [B, K]."""
    flat = maps.flatten(2)
    return flat.topk(max(1, round(share * flat.shape[2])), dim=2).values.mean(2)


def greedy_windows(saliency: torch.Tensor, window: int, count: int) -> torch.Tensor:
    """Upper left corners [B, count, 2] (row, column, int64) of the windows with the most saliency, one after another.

    saliency: [B, K, h, w]; each map is brought to 0 .. 1 (a flat one to 0) and the maps are summed. What a window
    covers counts as -1 for those after it, so that none comes twice.
    """
    low, high = saliency.amin((2, 3), keepdim=True), saliency.amax((2, 3), keepdim=True)
    span, flat = high - low, high - low <= FLAT * (high.abs() + low.abs())
    left = ((saliency - low) / span.masked_fill(flat, math.inf)).sum(1)             # [B, h, w]
    rows = torch.arange(left.shape[1], device=left.device)[None, :, None]
    columns = torch.arange(left.shape[2], device=left.device)[None, None, :]
    corners = []
    for _ in range(count):
        score = F.avg_pool2d(left[:, None], window, stride=1)[:, 0]
        best = score.flatten(1).argmax(1)
        row, column = best // score.shape[2], best % score.shape[2]
        corners.append(torch.stack([row, column], dim=1))
        top, side = row[:, None, None], column[:, None, None]
        covered = (rows >= top) & (rows < top + window) & (columns >= side) & (columns < side + window)
        left = left.masked_fill(covered, -1)
    return torch.stack(corners, dim=1)


def crop(images: torch.Tensor, corners: torch.Tensor, patch: int) -> torch.Tensor:
    """Crops [B, n, C, patch, patch] of images [B, C, S, S] at corners [B, n, 2] (row, column) in pixels."""
    offset = torch.arange(patch, device=images.device)
    rows = (corners[..., 0, None] + offset)[..., :, None]                           # [B, n, p, 1]
    columns = (corners[..., 1, None] + offset)[..., None, :]                        # [B, n, 1, p]
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    return images.movedim(1, -1)[batch, rows, columns].movedim(-1, 2)


class GatedAttention(nn.Module):
    """Attention pooling of instances (Ilse et al., ICML 2018, eq. 9): [B, n, D] -> [B, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, instances: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.value(instances)) * torch.sigmoid(self.gate(instances))
        weights = full_precision(self.score(hidden)).softmax(1)                     # [B, n, 1]
        return (weights * instances).sum(1)



def backbone(name: str, request: Request) -> SubNetwork:
    """A timm network up to its last map, with the weights of the request."""
    network = SubNetwork(name, "none", request.size)
    network.cnn, network.source = timm_features(name, request)
    return network


def guided(name: str) -> Builder:
    """The guidance network alone, on two timm networks of that name."""

    def build(request: Request) -> tuple[System, str]:
        system = Guidance(lambda: backbone(name, request), request.num_classes)
        return system, f"guidance {system.coarse.source}"

    return build
