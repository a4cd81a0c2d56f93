"""U-ViT (Bao et al., "All are Worth Words", CVPR 2023): a ViT with long skip connections."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from dcube.diffusion.attention import attend
from dcube.diffusion.backbone import Denoiser, Trial, timestep_embedding
from dcube.networks import UViTConfig


class Attention(nn.Module):
    """Multi-head self-attention."""

    attention_kind = "auto"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(attend(self.qkv(x), self.heads, self.attention_kind))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Transformer block; an out-block first joins the long skip: concatenate, then linear."""

    compiles = True  # by itself (training/compiled.py)

    def __init__(self, width: int, heads: int, mlp_ratio: float, skip: bool) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.skip = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.skip is not None:
            assert skip is not None
            x = self.skip(torch.cat([x, skip], dim=-1))
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class UViT(Denoiser):
    """U-ViT with `depth` / 2 in-blocks, a middle block and as many out-blocks, numbered 0 .. depth.

    Tokens: one for the time, then (image_size / patch)^2 patches; the label is added to every token.
    The default size has 44 M parameters (paper, section "Architecture").
    """

    def __init__(self, config: UViTConfig, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__(num_classes, config.width)
        half, width = config.depth // 2, config.width
        self.middle_index = half
        self.patch, self.channels, self.grid = config.patch, channels, image_size // config.patch
        self.blocks = config.blocks
        self.middle = f"block{half}"
        self.embed = _convolutional_stem(channels, width, config.patch) if config.stem == "conv" else nn.Conv2d(
            channels, width, config.patch, config.patch
        )
        self.position = nn.Parameter(torch.zeros(1, 1 + self.grid**2, width))
        self.layers = nn.ModuleList(
            Block(width, config.heads, config.mlp_ratio, skip=i > half) for i in range(config.depth + 1)
        )
        self.norm: nn.Module = nn.LayerNorm(width)
        self.unembed: nn.Module = nn.Linear(width, channels * config.patch**2)
        self.final: nn.Module = nn.Conv2d(channels, channels, 3, padding=1)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.position, std=0.02)

    def _run(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        x = self.embed(x_t).flatten(2).transpose(1, 2)                        # [B, L, D]
        time = timestep_embedding(t, x.shape[-1]).to(x.dtype)[:, None]        # [B, 1, D]
        x = torch.cat([time, x], dim=1) + label[:, None] + self.position      # [B, 1 + L, D]
        skips: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            x = layer(x, skips.pop() if i > self.middle_index else None)      # [B, 1 + L, D]
            if i < self.middle_index:
                skips.append(x)
            yield self.blocks[i], x
        x = self.unembed(self.norm(x))[:, 1:]                                 # [B, L, p * p * C]
        x = x.view(len(x), self.grid, self.grid, self.patch, self.patch, self.channels)
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)           # [B, C, H, W]
        yield "noise", self.final(x)

    def end_at_middle(self) -> None:
        super().end_at_middle()
        self.layers = self.layers[: self.middle_index + 1]  # type: ignore[assignment]  # a list
        self.norm, self.unembed, self.final = nn.Identity(), nn.Identity(), nn.Identity()

    def trials(self, x_t: torch.Tensor, t: torch.Tensor) -> dict[str, Trial]:
        block, tokens = self.layers[self.middle_index], torch.zeros_like(self.position).repeat(len(x_t), 1, 1)
        assert isinstance(block, Block)
        return {"attention": (block.attention, (tokens,)), "dtype": (block, (tokens,))}

    def as_map(self, feature: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, 1 + L, D] as a map [B, D, h, w]."""
        return feature[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))


def _convolutional_stem(channels: int, width: int, patch: int) -> nn.Sequential:
    """[B, C, H, W] -> [B, width, H / patch, W / patch] by 3x3 convolutions of stride 2, each with norm and SiLU, that
    double their channels, then a 1x1 convolution (Xiao et al. 2021, "Early convolutions help transformers see
    better"; group norm where they have batch norm, since the images of a batch bear different noise).
    """
    halvings = patch.bit_length() - 1
    widths = [channels, *(max(8, width >> (halvings - i)) for i in range(halvings))]
    layers: list[nn.Module] = []
    for inside, outside in zip(widths, widths[1:], strict=False):
        convolution = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(math.gcd(8, outside), outside), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], width, 1))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
