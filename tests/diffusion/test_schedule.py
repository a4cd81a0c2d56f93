"""Eq. 1 against a plain product and against diffusers."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import betas_for_alpha_bar

from dcube.config import DiffusionConfig
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


@pytest.mark.parametrize("T", [20, 1000])
def test_the_cosine_schedule_is_that_of_diffusers(T: int) -> None:
    betas = betas_for_alpha_bar(T, alpha_transform_type="cosine").double()
    ours = Schedule(T, kind="cosine")
    torch.testing.assert_close(1 - ours.alpha, betas, rtol=0, atol=1e-7)  # diffusers rounds to float32
    torch.testing.assert_close(ours.alpha.cumprod(0), ours.alpha_bar, rtol=1e-12, atol=0)


def test_the_cosine_schedule_has_its_closed_form() -> None:
    """alpha_bar_t = f(t + 1) / f(0), where beta is not yet bounded (Nichol & Dhariwal 2021, eq. 17)."""
    bar = Schedule(1000, kind="cosine").alpha_bar
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    for t in range(990):
        assert math.isclose(bar[t].item(), f[t + 1] / f[0], rel_tol=1e-9)
    assert bar[-1] > 0


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
def test_a_shift_moves_log_snr_by_a_constant(kind: str, shift: float) -> None:
    plain, shifted = Schedule(200, kind=kind), Schedule(200, kind=kind, shift=shift)
    expected = plain.snr.log() - 2 * math.log(shift)
    torch.testing.assert_close(shifted.snr.log(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shifted.alpha.cumprod(0), shifted.alpha_bar, rtol=1e-10, atol=0)
    assert (shifted.alpha > 0).all() and (shifted.alpha < 1).all()


def test_a_shift_by_the_ratio_of_sizes_leaves_the_reduced_image_as_noisy_as_before() -> None:
    """Why the shift is d / 64 (Hoogeboom et al. 2023): means of 2 x 2 pixels halve the noise, not the signal."""
    small, large, t = Schedule(100), Schedule(100, shift=2), torch.full((1,), 40)
    flat = torch.ones(1, 1, 512, 512, dtype=torch.float64)
    noise = torch.randn(1, 1, 512, 512, dtype=torch.float64)

    def ratio(schedule: Schedule, size: int) -> float:
        seen = torch.nn.functional.adaptive_avg_pool2d(schedule.add_noise(flat, noise, t), size)
        return (seen.std() / seen.mean()).item()

    assert math.isclose(ratio(large, 256), ratio(small, 512), rel_tol=0.02)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
def test_an_exact_output_gives_back_both_of_its_origins(prediction: str) -> None:
    schedule, t = Schedule(40, 1e-3, 0.3, prediction=prediction), torch.tensor([0, 1, 17, 39])
    x0, noise = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    x_t = schedule.add_noise(x0, noise, t)
    output = schedule.target(x0, noise, t)
    torch.testing.assert_close(schedule.noise_of(output, x_t, t), noise, rtol=0, atol=1e-5)  # factors are float32
    for i, step in enumerate(t.tolist()):
        torch.testing.assert_close(schedule.clean_of(output[i], x_t[i], step), x0[i], rtol=0, atol=1e-4)


def test_v_is_that_of_diffusers() -> None:
    oracle = DDPMScheduler(num_train_timesteps=40, beta_start=1e-3, beta_end=0.3)
    x0, noise, t = torch.randn(40, 1, 2, 2), torch.randn(40, 1, 2, 2), torch.arange(40)
    ours = Schedule(40, 1e-3, 0.3, prediction="v").target(x0, noise, t)
    torch.testing.assert_close(ours, oracle.get_velocity(x0, noise, t), rtol=0, atol=2e-6)


def test_a_configuration_reaches_the_schedule_whole() -> None:
    config = DiffusionConfig(timesteps=30, schedule="cosine", shift=3, prediction="v")
    ours, expected = Schedule.of(config), Schedule(30, kind="cosine", shift=3, prediction="v")
    assert torch.equal(ours.alpha_bar, expected.alpha_bar) and ours.prediction == "v"
    linear = Schedule.of(DiffusionConfig(timesteps=30, beta_start=1e-3, beta_end=0.1))
    assert torch.equal(linear.alpha_bar, Schedule(30, 1e-3, 0.1).alpha_bar) and linear.prediction == "noise"
