"""Reverse process (eq. 2): samplers are plain functions over any denoiser."""

import numpy as np
import torch

from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule


def guided_output(
    model: Denoiser, x_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor, guidance_scale: float
) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): null + scale * (conditional - null); scale 1 costs nothing.

    The same for noise, x_0 and v as output: at one x_t each is an affine function of the others.
    """
    if guidance_scale == 1:
        output, _ = model(x_t, t, y)
    else:
        null = torch.full_like(y, model.null_label)
        both, _ = model(x_t.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([y, null]))
        conditional, unconditional = both.chunk(2)
        output = unconditional + guidance_scale * (conditional - unconditional)
    return output


def estimate(
    model: Denoiser, schedule: Schedule, x: torch.Tensor, step: int, y: torch.Tensor, guidance_scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model sees in x at a timestep: (x_0 clipped to [-1, 1], the noise that goes with the clipped x_0).

    x: [B, C, H, W]; y: [B] int64. The one place where samplers read a network's output, whatever it predicts.
    """
    output = guided_output(model, x, torch.full_like(y, step), y, guidance_scale)
    x0 = schedule.clean_of(output, x, step).clamp(-1, 1)
    bar = schedule.alpha_bar[step].item()
    return x0, (x - bar**0.5 * x0) / (1 - bar) ** 0.5


def fresh_noise(x: torch.Tensor, generator: torch.Generator | list[torch.Generator]) -> torch.Tensor:
    """Standard normal like x [B, C, H, W]; from a list of one generator per image, it is the same in any batch."""
    if isinstance(generator, list):
        return torch.stack([torch.randn(x.shape[1:], generator=one) for one in generator]).to(x)
    return torch.randn(x.shape, generator=generator).to(x)


@torch.inference_mode()
def ddpm_sample(
    model: Denoiser, schedule: Schedule, y: torch.Tensor, start: torch.Tensor,
    generator: torch.Generator | list[torch.Generator], guidance_scale: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Ancestral sampling of eq. 2 over all T steps with the posterior variance (Ho et al. 2020, algorithm 2).

    y: [B] int64; start: [B, C, H, W] standard normal; generator: one, or a list of one per image. Returns images in
    [-1, 1].
    """
    x = start
    for step in reversed(range(schedule.timesteps)):
        x0, _ = estimate(model, schedule, x, step, y, guidance_scale)
        alpha, bar = schedule.alpha[step].item(), schedule.alpha_bar[step].item()
        previous = schedule.alpha_bar[step - 1].item() if step else 1.0
        mean = (previous**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - previous) * x) / (1 - bar)
        sigma = ((1 - alpha) * (1 - previous) / (1 - bar)) ** 0.5
        fresh = fresh_noise(x, generator)
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
    count, last = min(steps, schedule.timesteps), schedule.timesteps - 1
    times = np.linspace(0, last, count).round().astype(int) if count > 1 else np.array([last])
    for i in reversed(range(len(times))):
        x0, noise = estimate(model, schedule, x, int(times[i]), y, guidance_scale)
        previous = schedule.alpha_bar[times[i - 1]].item() if i else 1.0
        x = previous**0.5 * x0 + (1 - previous) ** 0.5 * noise
    return x.clamp(-1, 1)
