"""Reverse process (eq. 2): samplers are plain functions over any denoiser."""

import numpy as np
import torch

from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule


def guided_noise(
    model: Denoiser, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): null + scale * (conditional - null); scale 1 costs nothing."""
    if guidance_scale == 1:
        noise, _ = model(x_t, t, y)
    else:
        null = torch.full_like(y, model.null_label)
        both, _ = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([y, null]))
        conditional, unconditional = both.chunk(2)
        noise = unconditional + guidance_scale * (conditional - unconditional)
    return noise


@torch.inference_mode()
def ddpm_sample(
    model: Denoiser, schedule: Schedule, y: torch.Tensor, start: torch.Tensor,
    generator: torch.Generator, guidance_scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Ancestral sampling of eq. 2 over all T steps with the posterior variance (Ho et al. 2020, algorithm 2).

    y: [B] int64; start: [B, C, H, W] standard normal. Returns images in [-1, 1].
    """
    x = start
    for step in reversed(range(schedule.timesteps)):
        t = torch.full_like(y, step)
        noise = guided_noise(model, x, t, y, guidance_scale)
        alpha, bar = schedule.alpha[step].item(), schedule.alpha_bar[step].item()
        previous = schedule.alpha_bar[step - 1].item() if step else 1.0
        x0 = _clean(x, noise, bar)
        mean = (previous**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - previous) * x) / (1 - bar)
        sigma = ((1 - alpha) * (1 - previous) / (1 - bar)) ** 0.5
        fresh = torch.randn(x.shape, generator=generator).to(x)
        x = mean + sigma * fresh
    return x.clamp(-1, 1)


@torch.inference_mode()
def ddim_sample(
    model: Denoiser, schedule: Schedule, y: torch.Tensor, start: torch.Tensor,
    steps: int = 50, guidance_scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Deterministic DDIM (Song et al. 2021, eta = 0) over `steps` evenly spaced timesteps.

    y: [B] int64; start: [B, C, H, W] standard normal. Returns images in [-1, 1].
    """
    x = start
    times = np.linspace(0, schedule.timesteps - 1, min(steps, schedule.timesteps)).round().astype(int)
    for i in reversed(range(len(times))):
        noise = guided_noise(model, x, torch.full_like(y, int(times[i])), y, guidance_scale)
        bar = schedule.alpha_bar[times[i]].item()
        previous = schedule.alpha_bar[times[i - 1]].item() if i else 1.0
        x0 = _clean(x, noise, bar)
        noise = (x - bar**0.5 * x0) / (1 - bar) ** 0.5  # consistent with the clipped x_0
        x = previous**0.5 * x0 + (1 - previous) ** 0.5 * noise
    return x.clamp(-1, 1)


def _clean(x_t: torch.Tensor, noise: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """x_0 that x_t and a noise prediction imply, clipped to the range of images."""
    return ((x_t - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5).clamp(-1, 1)
