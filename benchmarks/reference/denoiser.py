"""eps_theta(x_t, t, y) in plain tensor operations, over the tensors of a trained model."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dcube.config import DiffusionConfig

Tensors = Mapping[str, torch.Tensor]


class PlainDenoiser:
    """A denoiser of its own tensors `p`, with the names of the program's state dict. Always computed to the end.

    `denoiser(x_t, t, y)`: x_t [B, C, H, W]; t [B] int64; y [B] int64 (K: null) or [B, K] probabilities.
    Returns (noise [B, C, H, W], features of every block in the order of the computation: tokens [B, 1 + L, D] of
    U-ViT, maps [B, C_b, h, w] of the U-Net).
    """

    def __init__(self, tensors: Tensors, config: DiffusionConfig, trainable: bool = False) -> None:
        self.p = {name: v.detach().clone().contiguous() for name, v in tensors.items()}
        for tensor in self.p.values():
            tensor.requires_grad_(trainable)
        self.config = config
        self.null_label = len(self.p["labels.weight"]) - 1

    def __call__(
        self, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        table = self.p["labels.weight"]
        label = y @ table[: self.null_label] if y.is_floating_point() else table[y]
        if self.config.backbone == "uvit":
            return uvit(self.p, self.config.uvit.heads, self.config.uvit.patch, x_t, t, label)
        return unet(self.p, self.config.unet.groups, self.config.unet.patch, x_t, t, label)

    def maps(self, feature: torch.Tensor) -> torch.Tensor:
        """A block's feature as [B, C, h, w]: of U-ViT the patch tokens, without that of the time."""
        if feature.ndim == 4:
            return feature
        side = round((feature.shape[1] - 1) ** 0.5)
        return feature[:, 1:].transpose(1, 2).reshape(len(feature), -1, side, side)

    @property
    def middle(self) -> int:
        """Number of the middle block."""
        config = self.config
        return config.uvit.depth // 2 if config.backbone == "uvit" else len(config.unet.widths)


def sinusoids(t: torch.Tensor, width: int, like: torch.Tensor) -> torch.Tensor:
    """Timestep embedding [B, width] of the transformer paper: cosines, then sines."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(like.dtype)


def uvit(
    p: Tensors, heads: int, patch: int, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """U-ViT (Bao et al. 2023): tokens of time and patches, long skips from block k to block depth - k."""
    x = F.conv2d(x_t, p["embed.weight"], p["embed.bias"], stride=patch).flatten(2).transpose(1, 2)
    x = torch.cat([sinusoids(t, x.shape[-1], x)[:, None], x], dim=1)
    x = x + label[:, None] + p["position"]
    depth = sum(name.endswith("norm1.weight") for name in p) - 1
    features: list[torch.Tensor] = []
    for i in range(depth + 1):
        at = f"layers.{i}."
        if i > depth // 2:
            x = _linear(p, at + "skip", torch.cat([x, features[depth - i]], dim=-1))
        x = x + _attention(p, at + "attention.", heads, _layer_norm(p, at + "norm1", x))
        hidden = F.gelu(_linear(p, at + "mlp.0", _layer_norm(p, at + "norm2", x)))
        x = x + _linear(p, at + "mlp.2", hidden)
        features.append(x)
    pixels = _linear(p, "unembed", _layer_norm(p, "norm", x))[:, 1:]            # [B, L, patch * patch * C]
    side, channels = x_t.shape[-1] // patch, x_t.shape[1]
    image = pixels.reshape(len(x), side, side, patch, patch, channels)
    image = image.permute(0, 5, 1, 3, 2, 4).reshape(x_t.shape)
    return F.conv2d(image, p["final.weight"], p["final.bias"], padding=1), features


def _attention(p: Tensors, at: str, heads: int, x: torch.Tensor) -> torch.Tensor:
    """Multi-head self-attention on [B, L, D]; torch's own kernel, the faster plain choice in float32."""
    q, k, v = _linear(p, at + "qkv", x).chunk(3, dim=-1)
    split = (len(x), x.shape[1], heads, -1)
    q, k, v = (part.reshape(split).transpose(1, 2) for part in (q, k, v))       # [B, heads, L, d]
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    return _linear(p, at + "proj", mixed)


def unet(
    p: Tensors, groups: int, patch: int, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Convolutional U-Net (Ho et al. 2020), one residual layer per level, attention in the middle."""
    time = sinusoids(t, p["time.0.weight"].shape[1], x_t)
    condition = F.silu(_linear(p, "time.2", F.silu(_linear(p, "time.0", time))) + label)
    levels = sum(name.startswith("down.") and name.endswith("conv1.weight") for name in p)
    x = _conv(p, "stem", F.pixel_unshuffle(x_t, patch))
    features: list[torch.Tensor] = []
    for i in range(levels):
        if i:
            x = _conv(p, f"shrink.{i - 1}", x, stride=2)
        x = _residual(p, f"down.{i}.", groups, x, condition)
        features.append(x)
    x = _residual(p, "mid1.", groups, x, condition)
    x = x + _map_attention(p, groups, x)
    x = _residual(p, "mid2.", groups, x, condition)
    features.append(x)
    for i in range(levels):
        if i:
            x = _conv(p, f"grow.{i - 1}", F.interpolate(x, scale_factor=2, mode="nearest"))
        x = _residual(p, f"up.{i}.", groups, torch.cat([x, features[levels - 1 - i]], dim=1), condition)
        features.append(x)
    x = _conv(p, "final", F.silu(_group_norm(p, "norm", groups, x)))
    return F.pixel_shuffle(x, patch), features


def _residual(p: Tensors, at: str, groups: int, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    scale, shift = _linear(p, at + "modulate", condition)[:, :, None, None].chunk(2, dim=1)
    h = _conv(p, at + "conv1", F.silu(_group_norm(p, at + "norm1", groups, x)))
    h = _conv(p, at + "conv2", F.silu(_group_norm(p, at + "norm2", groups, h) * (1 + scale) + shift))
    if at + "short.weight" in p:
        x = F.conv2d(x, p[at + "short.weight"], p[at + "short.bias"])
    return x + h


def _map_attention(p: Tensors, groups: int, x: torch.Tensor) -> torch.Tensor:
    """Attention over the positions of a map, heads at least 32 wide."""
    width = x.shape[1]
    heads = max(n for n in range(1, max(1, width // 32) + 1) if width % n == 0)
    tokens = _group_norm(p, "attention.norm", groups, x).flatten(2).transpose(1, 2)
    return _attention(p, "attention.", heads, tokens).transpose(1, 2).reshape(x.shape)


def _linear(p: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _conv(p: Tensors, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return F.conv2d(x, p[name + ".weight"], p[name + ".bias"], stride=stride, padding=1)


def _layer_norm(p: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"])


def _group_norm(p: Tensors, name: str, groups: int, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, groups, p[name + ".weight"], p[name + ".bias"])
