"""T2T-ViT (Yuan et al., ICCV 2021): tokens-to-token modules with the Performer kernel, then a deep narrow ViT.

Names of the parameters are those of the released weights, so that these load from a file.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from dcube.baselines.backbones import Builder, Request
from dcube.baselines.base import IMAGENET, Network, System
from dcube.baselines.weights import file_tensors, load_into

EPSILON = 1e-8
TOKEN_WIDTH = 64  # of the two narrow transformers between the splits
SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # kernel, stride, padding of the three soft splits


@dataclass(frozen=True)
class T2TSize:
    """A row of the paper's table of models."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float


SIZES = {
    7: T2TSize(256, 7, 4, 2.0),
    10: T2TSize(256, 10, 4, 2.0),
    12: T2TSize(256, 12, 4, 2.0),
    14: T2TSize(384, 14, 6, 3.0),
    19: T2TSize(448, 19, 7, 3.0),
    24: T2TSize(512, 24, 8, 3.0),
}


def orthogonal_features(count: int, width: int) -> torch.Tensor:
    """Random directions [count, width], orthogonal within each run of `width`, of lengths as Gaussian vectors have.

    Each row alone is then a standard normal vector, which makes `softmax_kernel` unbiased (Choromanski et al., ICLR
    2021, section 3.2). The released T2T-ViT scales all rows to sqrt(count) instead, which is not; its weights files
    bring their own rows.
    """
    blocks = [torch.linalg.qr(torch.randn(width, width))[0].T for _ in range(math.ceil(count / width))]
    directions = torch.cat(blocks)[:count] * torch.randn(count, 1).sign()
    return directions * torch.randn(count, width).norm(dim=1, keepdim=True)


def softmax_kernel(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Positive features phi with E[phi(q) . phi(k)] = exp(q . k). x: [B, L, D]; directions: [m, D] -> [B, L, m]."""
    half = x.square().sum(-1, keepdim=True) / 2
    return torch.exp(x @ directions.T - half) / math.sqrt(len(directions))


def performer_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """softmax(q k^T) v without the L x L matrix. q, k, v: [B, L, D] -> [B, L, D], in float32 at least."""
    with torch.autocast(q.device.type, enabled=False):  # the exponentials do not fit into half precision
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
        seen, asked = softmax_kernel(k, directions.to(k.dtype)), softmax_kernel(q, directions.to(q.dtype))
        total = (asked * seen.sum(1, keepdim=True)).sum(-1, keepdim=True)          # [B, L, 1]
        return asked @ (seen.transpose(1, 2) @ v) / (total + EPSILON)              # [B, L, D]


class TokenPerformer(nn.Module):
    """A narrow transformer between two splits; since the widths differ, its residual is the value, not the input."""

    w: torch.Tensor

    def __init__(self, inside: int, width: int = TOKEN_WIDTH) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(inside), nn.LayerNorm(width)
        self.kqv = nn.Linear(inside, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("w", orthogonal_features(width // 2, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        k, q, v = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)                    # [B, L, width] each
        x = v + self.proj(performer_attention(q, k, v, self.w).to(v.dtype))
        x = x + self.mlp(self.norm2(x))
        return x


class TokensToToken(nn.Module):
    """Images [B, 3, S, S] -> tokens [B, (S / 16)^2, width] by three overlapping soft splits."""

    def __init__(self, width: int, channels: int = 3) -> None:
        super().__init__()
        self.attention1 = TokenPerformer(channels * SPLITS[0][0] ** 2)
        self.attention2 = TokenPerformer(TOKEN_WIDTH * SPLITS[1][0] ** 2)
        self.project = nn.Linear(TOKEN_WIDTH * SPLITS[2][0] ** 2, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = _split(images, 0)                                                 # [B, (S / 4)^2, 147]
        tokens = _split(_as_map(self.attention1(tokens)), 1)                       # [B, (S / 8)^2, 576]
        tokens = _split(_as_map(self.attention2(tokens)), 2)                       # [B, (S / 16)^2, 576]
        projected: torch.Tensor = self.project(tokens)
        return projected


def _split(x: torch.Tensor, number: int) -> torch.Tensor:
    kernel, stride, padding = SPLITS[number]
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


def _as_map(tokens: torch.Tensor) -> torch.Tensor:
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def sinusoid_table(positions: int, width: int) -> torch.Tensor:
    """Fixed positions [1, positions, width] (Vaswani et al. 2017): sines in the even columns, cosines in the odd."""
    rates = 10000.0 ** (-2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles[None].float()


class T2TViT(nn.Module):
    """Logits [B, K] of images [B, 3, S, S]; its fixed position table is made for the image size, here of any."""

    pos_embed: torch.Tensor

    def __init__(self, shape: T2TSize, num_classes: int, size: int = 224) -> None:
        super().__init__()
        for kernel, stride, padding in SPLITS:
            size = (size + 2 * padding - kernel) // stride + 1
        self.tokens_to_token = TokensToToken(shape.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("pos_embed", sinusoid_table(size * size + 1, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, shape.mlp_ratio, qkv_bias=False) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens_to_token(images)                                      # [B, L, D]
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = x + self.pos_embed                                                     # [B, 1 + L, D]
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x)[:, 0])
        return logits


def t2t_vit(number: int) -> Builder:
    """T2T-ViT-`number`, from random weights or a file of the released ones."""
    shape = SIZES[number]

    def build(request: Request) -> tuple[System, str]:
        network = T2TViT(shape, request.num_classes, request.size)
        source = "random"
        if request.file is not None:
            load_into(network, file_tensors(request.file), request.file, head="head")
            source = f"file {request.file.name}"
        return Network(network, *IMAGENET), source

    return build
