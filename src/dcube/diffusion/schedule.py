"""Forward process (eq. 1)."""

import torch
from torch import nn


class Schedule(nn.Module):
    """Linear beta schedule of eq. 1: q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I).

    Timestep t = 0 .. T-1 is the noise level, 0 the least. Products are formed in float64.
    """

    alpha: torch.Tensor
    alpha_bar: torch.Tensor

    def __init__(self, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        alpha = 1 - torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        self.timesteps = timesteps
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("alpha_bar", alpha.cumprod(0), persistent=False)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise. x0, noise: [B, C, H, W]; t: [B] int64."""
        alpha_bar = self.alpha_bar[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt().to(x0.dtype) * x0 + (1 - alpha_bar).sqrt().to(x0.dtype) * noise
