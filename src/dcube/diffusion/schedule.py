"""Forward process (eq. 1), and what a network's output says about it."""

import math
from typing import Self

import torch
from torch import nn

from dcube.config import DiffusionConfig

BETA_MAX = 0.999  # of the cosine schedule, whose last step would else leave no signal at all


class Schedule(nn.Module):
    """Noise levels of eq. 1: q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I).

    Timestep t = 0 .. T-1 is the noise level, 0 the least. `alpha`, `alpha_bar`: [T] float64 on the CPU wherever the
    module is, for Apple's GPU has no float64; only the two factors of x_t, in float32, follow the device.

    `kind`: "linear" in beta from `beta_start` to `beta_end`, or "cosine" (`cosine_alpha`). `shift` divides the SNR by
    its square (Hoogeboom et al. 2023, eq. 3). `prediction` is what the network gives: "noise", "x0", or "v" =
    sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022).
    """

    signal: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
        kind: str = "linear", shift: float = 1.0, prediction: str = "noise",
    ) -> None:  # fmt: skip
        super().__init__()
        self.timesteps, self.prediction = timesteps, prediction
        if kind == "cosine":
            self.alpha = cosine_alpha(timesteps)
        else:
            self.alpha = 1 - torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        self.alpha_bar = self.alpha.cumprod(0)
        if shift != 1:
            self.alpha_bar = self.alpha_bar / (self.alpha_bar + shift**2 * (1 - self.alpha_bar))
            self.alpha = torch.cat([self.alpha_bar[:1], self.alpha_bar[1:] / self.alpha_bar[:-1]])
        self.register_buffer("signal", self.alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("deviation", (1 - self.alpha_bar).sqrt().float(), persistent=False)

    @classmethod
    def of(cls, config: DiffusionConfig) -> Self:
        """The schedule that a configuration describes."""
        return cls(
            config.timesteps, config.beta_start, config.beta_end, config.schedule, config.shift, config.prediction
        )

    @property
    def snr(self) -> torch.Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar), [T] float64."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise. x0, noise: [B, C, H, W]; t: [B] int64."""
        signal, deviation = self._factors(t, x0)
        return signal * x0 + deviation * noise

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is to give for x_t = add_noise(x0, noise, t): noise, x_0 or v. [B, C, H, W]."""
        if self.prediction == "v":
            signal, deviation = self._factors(t, x0)
            return signal * noise - deviation * x0
        return noise if self.prediction == "noise" else x0

    def noise_of(self, output: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise that the network's `output` for x_t implies; the output itself where it predicts noise.

        output, x_t: [B, C, H, W]; t: [B] int64.
        """
        if self.prediction == "noise":
            return output
        signal, deviation = self._factors(t, output)
        return (x_t - signal * output) / deviation if self.prediction == "x0" else deviation * x_t + signal * output

    def clean_of(self, output: torch.Tensor, x_t: torch.Tensor, step: int) -> torch.Tensor:
        """The x_0 that the network's `output` for x_t at one timestep implies, not clipped. Both [B, C, H, W]."""
        bar = self.alpha_bar[step].item()
        signal, deviation = bar**0.5, (1 - bar) ** 0.5
        if self.prediction == "noise":
            return (x_t - deviation * output) / signal
        return output if self.prediction == "x0" else signal * x_t - deviation * output

    def _factors(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal and deviation at t, [B, 1, 1, 1] in the dtype of `like`."""
        signal, deviation = (factor[t].view(-1, 1, 1, 1).to(like.dtype) for factor in (self.signal, self.deviation))
        return signal, deviation


def cosine_alpha(timesteps: int, offset: float = 0.008) -> torch.Tensor:
    """alpha of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), [T] float64: alpha_bar falls like
    cos^2((t / T + offset) / (1 + offset) * pi / 2), beta bounded by 0.999.
    """
    angle = (torch.arange(timesteps + 1, dtype=torch.float64) / timesteps + offset) / (1 + offset) * math.pi / 2
    bar = angle.cos() ** 2
    return 1 - (1 - bar[1:] / bar[:-1]).clamp(max=BETA_MAX)
