"""A network in the style of CPT (Viriyasaranon, Woo, Choi; IEEE JBHI 27(4):2003-2014, 2023).

From the paper: a convolutional pyramid transformer, multi-kernel convolutional patch embedding, local spatial
reduction in each layer, and a pretext task, the segmentation of geometric shapes put into the images. No code is
public. Ours, and not CPT's: widths, depths, heads, kernels, reduction ratios (those of PVT v2), the decoder and every
figure of the pretext task.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dcube.baselines.backbones import Builder, Request
from dcube.baselines.base import IMAGENET, Normalise, Parts, Stage, System
from dcube.baselines.pretext import insert_shapes, segmentation_loss
from dcube.baselines.weights import file_tensors, load_into
from dcube.training.runtime import full_precision

KERNELS = (3, 5, 7)
DECODER_WIDTH = 64
PRETEXT_SHARE = 0.3  # of the budget


@dataclass(frozen=True)
class CPTSize:
    """Four stages, at strides 4, 8, 16 and 32."""

    widths: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    ratios: tuple[int, ...] = (8, 4, 2, 1)  # by which keys and values shrink along each side
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)


BASE = CPTSize((64, 128, 320, 512))  # the pyramid of PVT v2-b1
SMALL = CPTSize((32, 64, 160, 256))  # that of PVT v2-b0


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a map [B, C, h, w]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class MultiKernelEmbedding(nn.Module):
    """Convolutions of several kernels at one stride, each for a third of the D channels: [B, C, h, w] to [B, D, .]."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        shares = [len(range(i, outside, len(KERNELS))) for i in range(len(KERNELS))]  # a remainder to the small kernels
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inside, share, kernel, stride, padding=kernel // 2, bias=False)
            for kernel, share in zip(KERNELS, shares, strict=True)
        )
        self.norm = ChannelNorm(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(torch.cat([convolution(x) for convolution in self.convolutions], dim=1))
        return normed


class LocalReduction(nn.Module):
    """Keys and values on a grid `ratio` times coarser: each cell a depth-wise convolution of its own pixels."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.convolution = nn.Conv2d(width, width, ratio, stride=ratio, groups=width)
        self.norm = ChannelNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = [-length % self.ratio for length in x.shape[2:]]  # to whole cells
        reduced: torch.Tensor = self.norm(self.convolution(F.pad(x, (0, short[1], 0, short[0]))))
        return reduced


class CPTBlock(nn.Module):
    """Attention to locally reduced keys and values, then a feed-forward network with a depth-wise convolution."""

    def __init__(self, width: int, heads: int, ratio: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads, hidden = heads, width * mlp_ratio
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.reduce = LocalReduction(width, ratio) if ratio > 1 else nn.Identity()
        self.query, self.key_value = nn.Conv2d(width, width, 1), nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.feed_forward = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._attend(self.norm1(x))                                        # [B, D, h, w]
        x = x + self.feed_forward(self.norm2(x))
        return x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        query = self._split(self.query(x))                                         # [B, heads, h w, D / heads]
        key, value = map(self._split, self.key_value(self.reduce(x)).chunk(2, dim=1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: torch.Tensor = self.project(mixed.transpose(2, 3).reshape(x.shape))
        return attended

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)


class Pyramid(nn.Module):
    """Maps [B, D_i, S / stride_i, S / stride_i] of the four stages, from images [B, 3, S, S]."""

    def __init__(self, shape: CPTSize) -> None:
        super().__init__()
        before = (3, *shape.widths)
        self.embeddings = nn.ModuleList(
            MultiKernelEmbedding(before[i], width, 4 if i == 0 else 2) for i, width in enumerate(shape.widths)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(CPTBlock(width, heads, ratio, mlp) for _ in range(depth)), ChannelNorm(width))
            for width, depth, heads, ratio, mlp in zip(
                shape.widths, shape.depths, shape.heads, shape.ratios, shape.mlp_ratios, strict=True
            )
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            x = stage(embedding(x))
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Mask logits [B, 1, S, S] from the maps of a pyramid: brought to one width, summed at stride 4, interpolated."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.bring = nn.ModuleList(nn.Conv2d(width, DECODER_WIDTH, 1) for width in widths)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(DECODER_WIDTH, 1, 3, padding=1))

    def forward(self, maps: list[torch.Tensor], size: int) -> torch.Tensor:
        total = self.bring[0](maps[0])
        for bring, x in zip(self.bring[1:], maps[1:], strict=True):
            total = total + F.interpolate(bring(x), total.shape[2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.last(total), (size, size), mode="bilinear", align_corners=False)


class CPTStyle(System):
    """The pyramid with a linear head; in the first part of its training, with the decoder, on the pretext task."""

    def __init__(self, shape: CPTSize, num_classes: int, pretext: float = PRETEXT_SHARE) -> None:
        super().__init__()
        self.normalise, self.pyramid = Normalise(*IMAGENET), Pyramid(shape)
        self.decoder, self.head = Decoder(shape.widths), nn.Linear(shape.widths[-1], num_classes)
        self.pretext = pretext

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pyramid(self.normalise(images))[-1].mean((2, 3)))
        return logits

    def stages(self) -> tuple[Stage, ...]:
        return Stage("pretext", self.pretext, self.pretext_loss), Stage("train", 1 - self.pretext, self.loss)

    def pretext_loss(
        self, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
    ) -> tuple[torch.Tensor, Parts]:
        """Dice and binary cross-entropy of the mask of shapes put into the images. The labels are not looked at."""
        changed, mask = insert_shapes(images, rng)
        logits = self.decoder(self.pyramid(self.normalise(changed)), images.shape[-1])
        loss, dice = segmentation_loss(full_precision(logits), mask)
        return loss, {"pretext": loss.detach(), "dice": dice}


def cpt_style(shape: CPTSize) -> Builder:
    """CPT-style from random weights, or a file of the same network (its head aside)."""

    def build(request: Request) -> tuple[System, str]:
        system, source = CPTStyle(shape, request.num_classes), "random, then its pretext task"
        if request.file is not None:
            load_into(system, file_tensors(request.file), request.file, head="head")
            source = f"file {request.file.name}, then its pretext task"
        return system, source

    return build
