"""U-ViT against a plain float64 reading of the architecture, and its size against a formula."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf

from dcube.diffusion.backbone import timestep_embedding
from dcube.diffusion.uvit import UViT
from dcube.networks import UViTConfig
from tiny import randomise

Weights = dict[str, np.ndarray]


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def layer_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(x: np.ndarray, w: Weights, name: str, heads: int) -> np.ndarray:
    D = x.shape[-1]
    q, k, v = np.split(linear(x, w, f"{name}.qkv"), 3, axis=-1)
    out = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * D // heads, (h + 1) * D // heads)
        scores = q[..., part] @ k[..., part].swapaxes(1, 2) / math.sqrt(D // heads)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[..., part] = scores / scores.sum(-1, keepdims=True) @ v[..., part]
    return linear(out, w, f"{name}.proj")


def plain_uvit(w: Weights, x: np.ndarray, t: np.ndarray, y: np.ndarray, config: UViTConfig) -> dict[str, np.ndarray]:
    """Bao et al. 2023, read plainly: tokens, in-blocks, middle, out-blocks with long skips, 3x3 convolution."""
    B, C, H, W = x.shape
    p, D, side, half = config.patch, config.width, H // config.patch, config.depth // 2
    # the angles in float32, as every implementation has them: at t = 999 their rounding alone is 6e-5
    frequencies = torch.exp(-math.log(10000) * torch.arange(D // 2) / (D // 2)).numpy()
    angles = (t[:, None].astype(np.float32) * frequencies).astype(np.float64)
    tokens = [np.concatenate([np.cos(angles), np.sin(angles)], axis=1)]
    for row in range(side):
        for column in range(side):
            patch = x[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            tokens.append(np.einsum("bcij,dcij->bd", patch, w["embed.weight"]) + w["embed.bias"])
    h = np.stack(tokens, axis=1) + w["labels.weight"][y][:, None] + w["position"]
    out, skips = {}, []
    for i in range(config.depth + 1):
        if i > half:
            h = linear(np.concatenate([h, skips.pop()], axis=-1), w, f"layers.{i}.skip")
        h = h + attention(layer_norm(h, w, f"layers.{i}.norm1"), w, f"layers.{i}.attention", config.heads)
        inner = linear(layer_norm(h, w, f"layers.{i}.norm2"), w, f"layers.{i}.mlp.0")
        h = h + linear(inner * (1 + erf(inner / math.sqrt(2))) / 2, w, f"layers.{i}.mlp.2")
        if i < half:
            skips.append(h)
        out[f"block{i}"] = h
    pixels = linear(layer_norm(h, w, "norm"), w, "unembed")[:, 1:].reshape(B, side, side, p, p, C)
    image = np.zeros((B, C, H + 2, W + 2))
    for row in range(side):
        for column in range(side):
            at = slice(1 + row * p, 1 + (row + 1) * p), slice(1 + column * p, 1 + (column + 1) * p)
            image[:, :, at[0], at[1]] = pixels[:, row, column].transpose(0, 3, 1, 2)
    noise = np.zeros((B, C, H, W)) + w["final.bias"][:, None, None]
    for i in range(3):
        for j in range(3):
            noise += np.einsum("bchw,dc->bdhw", image[:, :, i : i + H, j : j + W], w["final.weight"][:, :, i, j])
    return out | {"noise": noise}


@pytest.mark.parametrize(
    ("settings", "size", "channels"),
    [
        ({"patch": 4, "width": 16, "depth": 4, "heads": 2}, 16, 1),
        ({"patch": 2, "width": 24, "depth": 2, "heads": 3}, 8, 3),
    ],
)
def test_output_equals_a_plain_reading(settings: dict[str, Any], size: int, channels: int) -> None:
    config = UViTConfig(**settings, mlp_ratio=2)
    model = UViT(config, image_size=size, channels=channels, num_classes=3).double()
    randomise(model)
    x = torch.randn(4, channels, size, size, dtype=torch.float64)
    t, y = torch.tensor([0, 1, 500, 999]), torch.tensor([0, 1, 2, 3])
    noise, features = model(x, t, y, model.blocks)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    expected = plain_uvit(weights, x.numpy(), t.numpy(), y.numpy(), config)
    assert np.abs(expected["noise"]).max() > 0.1
    np.testing.assert_allclose(noise.detach().numpy(), expected.pop("noise"), rtol=0, atol=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(features[name].detach().numpy(), value, rtol=1e-6, atol=1e-6)


def test_the_papers_size_has_44_million_parameters() -> None:
    D, p, C, K, depth, L = 512, 8, 1, 3, 12, 256
    block = 2 * 2 * D + 3 * D * D + (D * D + D) + (4 * D * D + 4 * D) + (4 * D * D + D)
    skips = depth // 2 * (2 * D * D + D)
    ends = (C * p * p * D + D) + (1 + L) * D + (K + 1) * D + 2 * D + (D * p * p * C + p * p * C) + (9 * C * C + C)
    model = UViT(UViTConfig(), image_size=128, channels=C, num_classes=K)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (depth + 1) * block + skips + ends
    assert round(count / 1e6) == 44


def test_time_embedding_is_that_of_diffusers() -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    t = torch.tensor([0, 1, 17, 500, 999])
    oracle = get_timestep_embedding(t, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, 32), oracle, rtol=0, atol=2e-4)


def test_a_map_holds_each_token_at_its_place() -> None:
    model = UViT(UViTConfig(patch=4, width=16, depth=2, heads=2), image_size=16, channels=1, num_classes=2)
    feature = torch.randn(2, 17, 16)
    for row in range(4):
        for column in range(4):
            assert torch.equal(model.as_map(feature)[:, :, row, column], feature[:, 1 + 4 * row + column])
