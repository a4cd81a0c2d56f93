"""Step 1 of the paper (eq. 1-5), pair by pair, and its reverse process (eq. 2)."""

from collections.abc import Mapping

import torch

from benchmarks.reference.denoiser import PlainDenoiser
from benchmarks.reference.training import PlainTraining


def alpha_bars(timesteps: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Products of alpha = 1 - beta for the linear schedule of eq. 1, beta from 1e-4 to 0.02; [T] float64."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64), 0).to(device)


def noised(x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    """x_t of eq. 1. x, noise: [B, C, H, W]; t: [B]; bars: [T]."""
    bar = bars[t][:, None, None, None]
    return bar.sqrt().to(x.dtype) * x + (1 - bar).sqrt().to(x.dtype) * noise


def generative_loss(
    denoiser: PlainDenoiser, batch: Mapping[str, torch.Tensor], bars: torch.Tensor, margin: float = 0.1
) -> torch.Tensor:
    """L_Gen of eq. 5: two forwards per pair; eq. 4 as it is printed (L2 of the middle blocks, summed).

    batch: x [B, 2, C, S, S] in [-1, 1]; y, dropped (the label becomes null) [B, 2]; same, t [B]; noise [B, C, S, S].
    """
    noise, middles, loss = batch["noise"], [], torch.zeros((), device=batch["x"].device)
    for image in (0, 1):
        label = torch.where(batch["dropped"][:, image], denoiser.null_label, batch["y"][:, image])
        predicted, features = denoiser(noised(batch["x"][:, image], noise, batch["t"], bars), batch["t"], label)
        loss = loss + (predicted - noise).square().mean()                       # eq. 3
        middles.append(features[denoiser.middle])
    distance = (middles[0] - middles[1]).square().flatten(1).sum(1).sqrt()
    return loss + torch.where(batch["same"], distance, (margin - distance).clamp(min=0)).sum()


class GenerativeReference(PlainTraining):
    """Steps of step 1 on one batch."""

    def __init__(self, denoiser: PlainDenoiser, batch: Mapping[str, torch.Tensor], lr: float, decay: float) -> None:
        super().__init__(list(denoiser.p.values()), lr, decay)
        self.denoiser, self.batch = denoiser, batch
        self.bars = alpha_bars(denoiser.config.timesteps, batch["x"].device)

    def loss(self) -> torch.Tensor:
        return generative_loss(self.denoiser, self.batch, self.bars)


@torch.no_grad()
def ancestral_sample(
    denoiser: PlainDenoiser, y: torch.Tensor, start: torch.Tensor, generator: torch.Generator, timesteps: int,
    last: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Ancestral sampling (Ho et al. 2020, algorithm 2) from t = T - 1 down to `last`, one evaluation per step.

    x_0 is clipped to the images' range before the posterior mean, as there. y: [B]; start: [B, C, H, W].
    """
    bars, x = alpha_bars(timesteps), start
    for step in range(timesteps - 1, last - 1, -1):
        bar, before = bars[step].item(), bars[step - 1].item() if step else 1.0
        alpha = bar / before
        predicted, _ = denoiser(x, torch.full_like(y, step), y)
        clean = ((x - (1 - bar) ** 0.5 * predicted) / bar**0.5).clamp(-1, 1)
        mean = (before**0.5 * (1 - alpha) * clean + alpha**0.5 * (1 - before) * x) / (1 - bar)
        deviation = ((1 - alpha) * (1 - before) / (1 - bar)) ** 0.5
        x = mean + deviation * torch.randn(x.shape, generator=generator).to(x)
    return x.clamp(-1, 1)
