"""Block features of the frozen diffusion model."""

from collections.abc import Sequence

import torch

from dcube.diffusion.train import Diffusion
from dcube.training.order import torch_rng


@torch.inference_mode()
def block_maps(
    diffusion: Diffusion, images: torch.Tensor, t: torch.Tensor, blocks: Sequence[str], mode: str = "clean"
) -> list[torch.Tensor]:
    """Features [B, C_b, h_b, w_b] of `blocks` under the null label; the computation ends after the last of them.

    images: [B, C, S, S] in [0, 1] at the diffusion model's size; t: [B] int64. `mode` (table VII): "clean"
    feeds x_0 with t, "noised" x_t with t (the noise is a fixed function of t, so that an image's features do
    not depend on its neighbours), "clean_t0" x_0 with t = 0.
    """
    if not blocks:  # a classifier without step 1
        return []
    x = images * 2 - 1
    if mode == "clean_t0":
        t = torch.zeros_like(t)
    elif mode == "noised":
        x = diffusion.schedule.add_noise(x, fixed_noise(t, x.shape[1:]).to(x), t)
    _, features = diffusion.model(x, t, None, taps=tuple(blocks), stop=True)
    return [diffusion.model.as_map(features[name]) for name in blocks]


def fixed_noise(t: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Standard normal noise [B, *shape] that depends on each t [B] alone."""
    return torch.stack([torch.randn(shape, generator=torch_rng(0, "feature noise", int(step))) for step in t])
