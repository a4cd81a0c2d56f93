"""A fast sampler: DPM-Solver++(2M) over any denoiser."""

import math

import numpy as np
import torch

from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.sampling import estimate, fresh_noise
from dcube.diffusion.schedule import Schedule


def dpm_timesteps(schedule: Schedule, steps: int, spacing: str) -> list[int]:
    """At most `steps` timesteps from T - 1 downwards, all different.

    "logsnr": equal distances in log(alpha_bar / (1 - alpha_bar)), down to 0, rounded to what there is, so that a large
    number of steps gives fewer. "time": equal distances in t, down to T / steps and not to 0, for the jump in log SNR
    from there is too long for a second-order step. ValueError for another spacing.
    """
    last = schedule.timesteps - 1
    if spacing == "time":
        times = np.linspace(last, 0, min(steps, last) + 1).round()[:-1]
    elif spacing == "logsnr":
        levels = schedule.snr.log().numpy()[::-1]  # rising
        times = last - np.interp(np.linspace(levels[0], levels[-1], steps), levels, np.arange(last + 1.0)).round()
    else:
        raise ValueError(f"spacing is 'time' or 'logsnr', not '{spacing}'")
    return sorted({int(t) for t in times}, reverse=True)


@torch.inference_mode()
def dpm_sample(
    model: Denoiser, schedule: Schedule, y: torch.Tensor, start: torch.Tensor,
    steps: int = 20, guidance_scale: float = 1.0, spacing: str = "logsnr",
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:  # fmt: skip
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), of second order with one evaluation per step: deterministic, or
    with a `generator` (one, or a list of one per image) SDE-DPM-Solver++(2M), their appendix, which like eq. 2 adds
    noise at every step and so forgives a denoiser's errors, where the deterministic one carries them to the end.

    The last step, to the image without noise, is the estimate of x_0: there lambda has no end. y: [B] int64;
    start: [B, C, H, W] standard normal; spacing as in `dpm_timesteps`. Returns images in [-1, 1].
    """
    times = dpm_timesteps(schedule, steps, spacing)
    lambdas = (schedule.snr.log() / 2)[times].tolist()  # lambda = log(signal / deviation)
    bars = schedule.alpha_bar[times].tolist()
    order = 1 if generator is None else 2  # the share of x that goes in a step is exp(-h), or exp(-2 h) with noise
    x, before = start, start
    for i, step in enumerate(times):
        x0, _ = estimate(model, schedule, x, step, y, guidance_scale)
        if i + 1 == len(times):
            break
        h = lambdas[i + 1] - lambdas[i]
        slope = (x0 - before) * (h / (lambdas[i] - lambdas[i - 1])) if i else 0.0
        signal, deviation = math.sqrt(bars[i + 1]), math.sqrt(1 - bars[i + 1])
        new = -math.expm1(-order * h)  # 1 - exp(-h), or 1 - exp(-2 h)
        kept = deviation / math.sqrt(1 - bars[i]) * math.exp(-(order - 1) * h)
        x = kept * x + signal * new * (x0 + slope / 2)
        if generator is not None:
            x = x + deviation * math.sqrt(new) * fresh_noise(x, generator)
        before = x0
    return x0
