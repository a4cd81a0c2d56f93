"""Forward process (eq. 1)."""

import torch
from torch import nn


class Schedule(nn.Module):
    """Linear beta schedule of eq. 1: q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I).

    Timestep t = 0 .. T-1 is the noise level, 0 the least. `alpha`, `alpha_bar`: [T] float64 on the CPU wherever the
    module is, for Apple's GPU has no float64; only the two factors of x_t, in float32, follow the device.
    """

    signal: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.alpha = 1 - torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        self.alpha_bar = self.alpha.cumprod(0)
        self.register_buffer("signal", self.alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("deviation", (1 - self.alpha_bar).sqrt().float(), persistent=False)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise. x0, noise: [B, C, H, W]; t: [B] int64."""
        signal, deviation = (factor[t].view(-1, 1, 1, 1).to(x0.dtype) for factor in (self.signal, self.deviation))
        return signal * x0 + deviation * noise
