"""Eq. 1 against a plain product and against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from dcube.diffusion.schedule import Schedule


def test_alpha_bar_is_the_plain_product() -> None:
    schedule, product = Schedule(1000, 1e-4, 0.02), 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        assert math.isclose(schedule.alpha_bar[t].item(), product, rel_tol=1e-12)


@pytest.mark.parametrize(("T", "start", "end"), [(1000, 1e-4, 0.02), (40, 1e-3, 0.3)])
def test_noise_is_added_as_by_diffusers(T: int, start: float, end: float) -> None:
    oracle = DDPMScheduler(num_train_timesteps=T, beta_start=start, beta_end=end, beta_schedule="linear")
    x0, noise, t = torch.randn(T, 1, 2, 2), torch.randn(T, 1, 2, 2), torch.arange(T)
    ours = Schedule(T, start, end).add_noise(x0, noise, t)
    torch.testing.assert_close(ours, oracle.add_noise(x0, noise, t), rtol=0, atol=2e-5)


def test_noise_is_added_as_eq_1_says() -> None:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise, each image at its own t; the dtype is kept."""
    schedule, t = Schedule(100), torch.tensor([0, 57, 99])
    x0, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    x_t = schedule.add_noise(x0, noise, t)
    assert x_t.dtype == torch.float64
    for i, step in enumerate(t):
        bar = math.prod(1 - (1e-4 + (0.02 - 1e-4) * s / 99) for s in range(int(step) + 1))
        torch.testing.assert_close(x_t[i], bar**0.5 * x0[i] + (1 - bar) ** 0.5 * noise[i], rtol=0, atol=1e-6)


def test_the_products_stay_in_float64_when_the_module_moves() -> None:
    assert Schedule(10).to("cpu", torch.float32).alpha_bar.dtype == torch.float64
