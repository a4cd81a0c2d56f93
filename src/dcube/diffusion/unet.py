"""A convolutional U-Net for small budgets (Ho et al. 2020): it learns in minutes what U-ViT needs hours for."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from dcube.diffusion.attention import attend
from dcube.diffusion.backbone import Denoiser, timestep_embedding
from dcube.networks import UNetConfig


class Residual(nn.Module):
    """Two convolutions around a scale and shift by time and label; the second starts at zero."""

    compiles = True  # by itself (training/compiled.py)

    def __init__(self, inside: int, outside: int, condition: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * outside)
        self.norm2, self.conv2 = nn.GroupNorm(groups, outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.short = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        return self.short(x) + self.conv2(self.dropout(h))  # type: ignore[no-any-return]


class MapAttention(nn.Module):
    """Self-attention over the positions of a map, added back; starts at zero."""

    attention_kind = "auto"

    def __init__(self, width: int, groups: int, head_width: int = 32) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, width // head_width), 0, -1) if width % heads == 0)
        self.norm = nn.GroupNorm(groups, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)                                      # [B, L, C]
        tokens = attend(self.qkv(tokens), self.heads, self.attention_kind)
        return x + self.proj(tokens).transpose(1, 2).view(x.shape)  # type: ignore[no-any-return]


class UNet(Denoiser):
    """`layers` residual layers per level and direction, attention in the middle block and, at the levels of
    `attention`, after every residual layer.

    Blocks, in order: down1 .. downN, mid, upN .. up1; downI and upI have widths[I-1] channels at
    1 / 2^(I-1) of the (un-shuffled) image size. Skips join downI to upI.
    """

    def __init__(self, config: UNetConfig, channels: int, num_classes: int) -> None:
        widths, groups = config.widths, config.groups
        condition = 4 * widths[0]
        super().__init__(num_classes, condition)
        self.widths, self.patch = widths, config.patch
        self.blocks = config.blocks
        self.middle = "mid"
        self.time = nn.Sequential(nn.Linear(widths[0], condition), nn.SiLU(), nn.Linear(condition, condition))
        self.stem = nn.Conv2d(channels * config.patch**2, widths[0], 3, padding=1)

        def layer(inside: int, outside: int) -> Residual:
            return Residual(inside, outside, condition, groups, config.dropout)

        wider = list(zip((widths[0], *widths[:-1]), widths, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.down = nn.ModuleList(layer(a, b) for a, b in wider)
        self.mid1, self.attention = layer(widths[-1], widths[-1]), MapAttention(widths[-1], groups)
        self.mid2 = layer(widths[-1], widths[-1])
        self.up = nn.ModuleList(layer(2 * w, w) for w in reversed(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in reversed(wider[1:]))
        self.more = nn.ModuleDict()  # what follows the first layer of a block, in turn
        for name in (n for n in self.blocks if n != self.middle):
            level = int(name.lstrip("downup"))
            w, attends = widths[level - 1], level in config.attention
            parts: list[nn.Module] = [MapAttention(w, groups)] if attends else []
            for _ in range(config.layers - 1):
                parts += [layer(w, w), *([MapAttention(w, groups)] if attends else [])]
            if parts:
                self.more[name] = nn.ModuleList(parts)
        self.norm: nn.Module = nn.GroupNorm(groups, widths[0])
        last = nn.Conv2d(widths[0], channels * config.patch**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.final: nn.Module = last

    def _run(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        embedding = timestep_embedding(t, self.widths[0]).to(label.dtype)
        condition = F.silu(self.time(embedding) + label)                      # [B, 4 * w1]
        x = self.stem(F.pixel_unshuffle(x_t, self.patch))                     # [B, w1, H, W]
        skips: list[torch.Tensor] = []
        for i, layer in enumerate(self.down):
            x = layer(self.shrink[i - 1](x) if i else x, condition)           # [B, wi, H / 2^i, W / 2^i]
            x = self._go_on(f"down{i + 1}", x, condition)
            skips.append(x)
            yield f"down{i + 1}", x
        x = self.mid2(self.attention(self.mid1(x, condition)), condition)
        yield "mid", x
        for i, layer in enumerate(self.up):
            if i:
                x = self.grow[i - 1](F.interpolate(x, scale_factor=2.0))
            x = layer(torch.cat([x, skips.pop()], dim=1), condition)          # [B, wi, H / 2^i, W / 2^i]
            name = f"up{len(self.up) - i}"
            x = self._go_on(name, x, condition)
            yield name, x
        x = self.final(F.silu(self.norm(x)))
        yield "noise", F.pixel_shuffle(x, self.patch)

    def end_at_middle(self) -> None:
        super().end_at_middle()
        self.up, self.grow, self.norm, self.final = nn.ModuleList(), nn.ModuleList(), nn.Identity(), nn.Identity()
        for name in [name for name in self.more if name.startswith("up")]:
            del self.more[name]

    def _go_on(self, block: str, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The further layers and attention of a block."""
        if block not in self.more:
            return x
        for part in self.more[block]:  # type: ignore[attr-defined]  # a list
            x = part(x, condition) if isinstance(part, Residual) else part(x)
        return x
