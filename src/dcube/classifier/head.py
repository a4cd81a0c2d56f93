"""Fusion and classification heads: how diffusion features and CNN features become logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from dcube.config import ClassifierConfig


class Bring(nn.Module):
    """Block maps of any width and size to `width` channels on one grid: normalise, 1x1 convolution, resize."""

    def __init__(self, channels: int, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return resize(self.project(self.norm(x)), self.grid)


def resize(x: torch.Tensor, grid: int) -> torch.Tensor:
    """A map [B, C, h, w] on a grid x grid raster: averaged down, or interpolated up."""
    if x.shape[-1] == grid:
        return x
    if x.shape[-1] > grid:
        return F.adaptive_avg_pool2d(x, grid)
    return F.interpolate(x, (grid, grid), mode="bilinear", align_corners=False)


class MultiKernel(nn.Module):
    """Parallel 3x3 and 5x5 convolutions, summed and batch-normalised; no pooling."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.conv5 = nn.Conv2d(inside, outside, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv3(x) + self.conv5(x)))


class PaperHead(nn.Module):
    """The paper's fusion and multi-kernel head (section "Architecture"), for any K, width and feature size.

    Blocks are concatenated over the token axis and brought back to one grid by a 1x1 convolution over tokens;
    f_sub is reduced to the same width. Their fusion is a single channel, multiplied by K channel scores
    (global sum pooling of the CNN's map) and added back; then K -> 64 -> 32 -> 4 and two linear layers.
    Without blocks f_sub goes through the same head alone.
    """

    def __init__(
        self, blocks: Sequence[int], cnn_width: int, num_classes: int, grid: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.grid, self.width = grid, width
        self.bring = nn.ModuleList(Bring(channels, width, grid) for channels in blocks)
        self.tokens = nn.Conv1d(len(blocks) * grid**2, grid**2, 1) if blocks else None
        self.reduce = nn.Conv2d(cnn_width, width, 1)
        self.scores = nn.Conv2d(cnn_width, num_classes, 1)
        self.fuse = nn.Conv2d(2 * width if blocks else width, 1, 1)
        self.stages = nn.Sequential(MultiKernel(num_classes, 64), MultiKernel(64, 32), MultiKernel(32, 4))
        self.classify = nn.Sequential(
            nn.Linear(4 * grid**2, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, num_classes)
        )

    def forward(self, f_sub: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        # Nothing bends between `tokens`, `reduce` and the single channel of `fuse`: weighing the channels first is the
        # same sum in another order, with `width` times fewer products.
        of_main, of_sub = self.fuse.weight.flatten().split([self.fuse.in_channels - self.width, self.width])
        kernel = of_sub @ self.reduce.weight.flatten(1)                               # [cnn_width]
        fused = resize(F.conv2d(f_sub, kernel[None, :, None, None]), self.grid)       # [B, 1, g, g]
        fused = fused + (self.fuse.bias + of_sub @ self.reduce.bias)
        if self.tokens is not None:
            brought = [bring(m).flatten(2) for bring, m in zip(self.bring, maps, strict=True)]
            weighed = torch.cat([torch.einsum("bdt,d->bt", m, of_main) for m in brought], dim=1)
            tokens = F.linear(weighed, self.tokens.weight[:, :, 0]) + self.tokens.bias * of_main.sum()
            fused = fused + tokens.view(-1, 1, self.grid, self.grid)
        scores = self.scores(f_sub).sum((2, 3))[:, :, None, None]             # [B, K, 1, 1]
        attended = fused * scores + fused                                     # [B, K, g, g]
        return self.classify(self.stages(attended).flatten(1))  # type: ignore[no-any-return]


class LateHead(nn.Module):
    """Pooled features side by side, then one linear layer: a head without the paper's single-channel bottleneck.

    Every block is normalised, averaged onto a 4x4 raster and reduced to `width` values; the CNN's map is
    averaged. With few images this overfits less than the paper's head and keeps the CNN's own path short.
    """

    RASTER = 4

    def __init__(
        self, blocks: Sequence[int], cnn_width: int, num_classes: int, grid: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.raster = min(self.RASTER, grid)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in blocks)
        self.reduce = nn.ModuleList(nn.Linear(channels * self.raster**2, width) for channels in blocks)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(cnn_width + width * len(blocks), num_classes)

    def forward(self, f_sub: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        parts = [f_sub.mean((2, 3))]                                          # [B, cnn_width]
        for norm, reduce, m in zip(self.norms, self.reduce, maps, strict=True):
            parts.append(F.relu(reduce(self.dropout(resize(norm(m), self.raster).flatten(1)))))  # [B, width]
        return self.classify(self.dropout(torch.cat(parts, dim=1)))  # type: ignore[no-any-return]


class BranchHead(nn.Module):
    """Two classifiers whose logits are added: a linear layer on each block's map, and one on the CNN's mean.

    In training, some images are classified by the blocks alone and some by the CNN alone (whole branches dropped, after
    ModDrop, Neverova et al. 2016), so that each learns to decide alone and neither drowns the other. An image and its
    mirror image are drawn for apart, so eq. 8 asks the two branches to agree as well.
    """

    RASTER = 8
    ALONE = 0.25  # share of the images that each of the two classifies alone, in training

    def __init__(
        self, blocks: Sequence[int], cnn_width: int, num_classes: int, grid: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.raster = min(self.RASTER, grid)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in blocks)
        self.main = nn.ModuleList(nn.Linear(channels * self.raster**2, num_classes) for channels in blocks)
        self.sub = nn.Linear(cnn_width, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, f_sub: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        sub = self.sub(self.dropout(f_sub.mean((2, 3))))                                # [B, K]
        if not maps:
            return sub  # type: ignore[no-any-return]
        parts = []
        for norm, layer, m in zip(self.norms, self.main, maps, strict=True):
            flat = resize(norm(m), self.raster).flatten(1)                              # [B, C_b * r * r]
            parts.append(layer(self.dropout(flat) * flat.shape[1] ** -0.5))             # the same pace at any width
        main = torch.stack(parts).mean(0)                                               # [B, K]
        if self.training:
            drawn = torch.rand(len(sub), 1, device=sub.device)
            only_main, only_sub = drawn < self.ALONE, drawn >= 1 - self.ALONE
            return torch.where(only_main, 2 * main, torch.where(only_sub, 2 * sub, main + sub))
        return main + sub


HEADS = {"paper": PaperHead, "late": LateHead, "branches": BranchHead}


def map_side(config: ClassifierConfig) -> int:
    """Side of the maps that the head of a configuration looks at; larger ones are averaged down before."""
    return min(config.grid, getattr(HEADS[config.head], "RASTER", config.grid))
