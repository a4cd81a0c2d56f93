"""DPM-Solver++(2M) against diffusers' scheduler, and its order on a Gaussian whose flow has a closed form."""

import math
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from dcube.diffusion.sampling import ddim_sample, estimate
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.solver import dpm_sample, dpm_timesteps
from dcube.diffusion.train import Diffusion
from tiny import CLASSES, tiny_denoiser, tiny_experiment

T, Y = 28, torch.tensor([0, 2, 1])


def start() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double()


@torch.no_grad()
@pytest.mark.parametrize(("steps", "spacing", "scale"), [(27, "time", 1.0), (17, "time", 2.0), (20, "logsnr", 1.0)])
def test_the_solver_is_that_of_diffusers(steps: int, spacing: str, scale: float) -> None:
    schedule, model = Schedule(T, 1e-3, 0.2), tiny_denoiser()
    times = dpm_timesteps(schedule, steps, spacing)
    assert len(times) >= 15  # below, diffusers lowers the order of the last but one step
    oracle = DPMSolverMultistepScheduler(
        num_train_timesteps=T, beta_start=1e-3, beta_end=0.2, prediction_type="sample", solver_order=2
    )
    oracle.set_timesteps(timesteps=times)
    x = start()
    for t in times:
        x0, _ = estimate(model, schedule, x.double(), t, Y, scale)
        x = oracle.step(x0, t, x).prev_sample
    ours = dpm_sample(model, schedule, Y, start(), steps, scale, spacing)
    assert x.std() > 0.1 and ours.dtype == torch.float64
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=2e-5)  # diffusers computes in float32


@torch.no_grad()
def test_with_noise_it_is_that_of_diffusers() -> None:
    schedule, model = Schedule(T, 1e-3, 0.2), tiny_denoiser()
    times = dpm_timesteps(schedule, 20, "time")
    oracle = DPMSolverMultistepScheduler(
        num_train_timesteps=T, beta_start=1e-3, beta_end=0.2, prediction_type="sample", solver_order=2,
        algorithm_type="sde-dpmsolver++",
    )  # fmt: skip
    oracle.set_timesteps(timesteps=times)
    x, generator = start(), torch.Generator().manual_seed(1)
    for i, t in enumerate(times):
        x0, _ = estimate(model, schedule, x.double(), t, Y)
        noise = torch.randn(x.shape, generator=generator) if i + 1 < len(times) else torch.zeros(x.shape)
        x = oracle.step(x0, t, x, variance_noise=noise).prev_sample
    ours = dpm_sample(model, schedule, Y, start(), 20, 1.0, "time", torch.Generator().manual_seed(1))
    assert not torch.allclose(ours, dpm_sample(model, schedule, Y, start(), 20, 1.0, "time"), atol=1e-2)
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=2e-5)


class Gaussian:
    """The exact denoiser of images whose every value is N(MEAN, DEVIATION^2): posterior means in closed form."""

    MEAN, DEVIATION, null_label = 0.2, 0.15, 0

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def clean(self, x: torch.Tensor, step: int) -> torch.Tensor:
        """E[x_0 | x_t = x]."""
        bar = self.schedule.alpha_bar[step].item()
        variance = bar * self.DEVIATION**2 + 1 - bar
        return self.MEAN + self.DEVIATION**2 * math.sqrt(bar) * (x - math.sqrt(bar) * self.MEAN) / variance

    def __call__(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        bar = self.schedule.alpha_bar[int(t[0])].item()
        return (x - math.sqrt(bar) * self.clean(x, int(t[0]))) / math.sqrt(1 - bar), {}

    def flow(self, x: torch.Tensor) -> torch.Tensor:
        """The end of the probability-flow ODE from x at t = T - 1: the standardised value stays the same."""
        first, last = (self.schedule.alpha_bar[i].item() for i in (-1, 0))
        z = (x - math.sqrt(first) * self.MEAN) / math.sqrt(first * self.DEVIATION**2 + 1 - first)
        end = math.sqrt(last) * self.MEAN + math.sqrt(last * self.DEVIATION**2 + 1 - last) * z
        return self.clean(end, 0)


def test_it_converges_with_order_two() -> None:
    schedule = Schedule(20_000, 1e-4 / 20, 0.02 / 20)  # fine enough that timesteps can be halved many times
    model: Any = Gaussian(schedule)
    x = start()
    errors = {n: (dpm_sample(model, schedule, Y, x, n) - model.flow(x)).abs().max() for n in (40, 160)}
    order = math.log(errors[40] / errors[160]) / math.log(4)
    assert 1.7 < order < 2.4, errors
    ddim = (ddim_sample(model, schedule, Y, x, 40) - model.flow(x)).abs().max()
    assert errors[40] < ddim / 3


def test_timesteps() -> None:
    schedule = Schedule(1000)
    oracle = DPMSolverMultistepScheduler(beta_schedule="linear")
    oracle.set_timesteps(20)
    assert dpm_timesteps(schedule, 20, "time") == oracle.timesteps.tolist()
    assert dpm_timesteps(schedule, 5000, "time") == list(range(999, 0, -1))
    levels = schedule.snr.log()[dpm_timesteps(schedule, 9, "logsnr")]
    gaps = levels.diff()
    assert levels[0] == schedule.snr.log()[-1] and levels[-1] == schedule.snr.log()[0]
    assert (gaps - gaps.mean()).abs().max() < 0.7 and gaps[1:-2].std() < 0.1  # but for rounding at the lowest noise
    assert len(dpm_timesteps(schedule, 300, "logsnr")) < 300
    with pytest.raises(ValueError, match="spacing"):
        dpm_timesteps(schedule, 4, "random")


def test_one_step_is_the_first_estimate() -> None:
    schedule, model = Schedule(T, 1e-3, 0.2), tiny_denoiser()
    with torch.no_grad():
        assert torch.equal(dpm_sample(model, schedule, Y, start(), 1), estimate(model, schedule, start(), T - 1, Y)[0])


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "sde", "ddpm"])
def test_every_sampler_draws_an_image_from_seed_and_place_alone(sampler: str) -> None:
    config = tiny_experiment(diffusion={"sampler": sampler, "sample_steps": 6}).diffusion
    diffusion = Diffusion(tiny_denoiser().float().eval(), Schedule.of(config), config, 1, list(CLASSES))
    images = diffusion.sample(torch.tensor([0, 1, 2, 0]), seed=3)
    assert images.shape == (4, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(diffusion.sample(torch.tensor([2, 1]), seed=3)[1], images[1], rtol=0, atol=1e-5)
    assert not torch.allclose(images[0], images[3], atol=1e-2)
