"""Eq. 2: the samplers against diffusers' schedulers with the same model and noise, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from dcube.diffusion.sampling import ddim_sample, ddpm_sample, estimate, guided_output
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import write_grid
from tiny import CLASSES, tiny_denoiser, tiny_diffusion, tiny_experiment

T, Y = 28, torch.tensor([0, 2, 1])


def start() -> torch.Tensor:
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double()


def exact(oracle: Any) -> Any:
    """The scheduler with its products in float64, which diffusers forms in float32."""
    oracle.betas = torch.linspace(1e-3, 0.2, T, dtype=torch.float64)
    oracle.alphas = 1 - oracle.betas
    oracle.alphas_cumprod = oracle.alphas.cumprod(0)
    oracle.final_alpha_cumprod = oracle.one = torch.tensor(1.0, dtype=torch.float64)
    return oracle


PREDICTIONS = pytest.mark.parametrize(
    ("prediction", "theirs"), [("noise", "epsilon"), ("x0", "sample"), ("v", "v_prediction")]
)


@torch.no_grad()
@PREDICTIONS
def test_ddpm_is_that_of_diffusers(monkeypatch: pytest.MonkeyPatch, prediction: str, theirs: str) -> None:
    def same_noise(shape: Any, generator: Any, device: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", same_noise)
    settings = {"num_train_timesteps": T, "beta_start": 1e-3, "beta_end": 0.2, "variance_type": "fixed_small"}
    oracle = exact(DDPMScheduler(**settings, prediction_type=theirs))
    model, x, generator = tiny_denoiser(), start(), torch.Generator().manual_seed(1)
    for t in reversed(range(T)):
        output, _ = model(x, torch.full((3,), t), Y)
        x = oracle.step(output, t, x, generator=generator).prev_sample
    schedule = Schedule(T, 1e-3, 0.2, prediction=prediction)
    ours = ddpm_sample(model, schedule, Y, start(), torch.Generator().manual_seed(1))
    assert x.std() > 0.1
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("steps", "stride"), [(28, 1), (10, 3)])
@PREDICTIONS
def test_ddim_is_that_of_diffusers(steps: int, stride: int, prediction: str, theirs: str) -> None:
    settings = {"num_train_timesteps": T, "beta_start": 1e-3, "beta_end": 0.2, "set_alpha_to_one": True}
    oracle = exact(DDIMScheduler(**settings, prediction_type=theirs))
    oracle.set_timesteps(T // stride)  # diffusers' distance of two timesteps is T // steps
    model, x = tiny_denoiser(), start()
    for t in reversed(range(0, T, stride)):
        output, _ = model(x, torch.full((3,), t), Y)
        x = oracle.step(output, t, x, eta=0.0, use_clipped_model_output=True).prev_sample
    ours = ddim_sample(model, Schedule(T, 1e-3, 0.2, prediction=prediction), Y, start(), steps)
    assert x.std() > 0.1
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=0, atol=1e-9)


@torch.no_grad()
def test_guidance() -> None:
    model, t = tiny_denoiser(), torch.tensor([3, 9, 20])
    conditional, null = model(start(), t, Y)[0], model(start(), t)[0]
    for scale in (0.0, 1.0, 2.5):
        expected = null + scale * (conditional - null)
        torch.testing.assert_close(guided_output(model, start(), t, Y, scale), expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_guiding_any_output_is_guiding_the_noise(prediction: str) -> None:
    """Ho & Salimans 2022 guide the noise; every output is affine in it, with the same factors for both labels."""
    model, schedule, t = tiny_denoiser(), Schedule(T, 1e-3, 0.2, prediction=prediction), torch.tensor([3, 9, 20])
    conditional, null = (schedule.noise_of(model(start(), t, y)[0], start(), t) for y in (Y, None))
    guided = schedule.noise_of(guided_output(model, start(), t, Y, 2.5), start(), t)
    torch.testing.assert_close(guided, null + 2.5 * (conditional - null), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
def test_an_estimate_explains_the_image_it_was_made_from(prediction: str) -> None:
    model, schedule = tiny_denoiser(), Schedule(T, 1e-3, 0.2, prediction=prediction)
    for step in (0, 13, T - 1):
        x0, noise = estimate(model, schedule, start(), step, Y)
        bar = schedule.alpha_bar[step]
        assert x0.abs().max() <= 1
        torch.testing.assert_close(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, start(), rtol=0, atol=1e-12)


def test_more_steps_than_timesteps_are_all_timesteps() -> None:
    model, schedule = tiny_denoiser(), Schedule(T, 1e-3, 0.2)
    assert torch.equal(ddim_sample(model, schedule, Y, start(), 500), ddim_sample(model, schedule, Y, start(), T))


def test_an_image_depends_on_seed_and_place_alone() -> None:
    diffusion = tiny_diffusion()
    images = diffusion.sample(torch.tensor([0, 1, 2, 0, 1]), seed=3, steps=10)
    assert images.shape == (5, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    fewer = diffusion.sample(torch.tensor([2, 1]), seed=3, steps=10)
    torch.testing.assert_close(fewer[1], images[1], rtol=0, atol=1e-5)
    assert not torch.allclose(images[1], images[4], atol=1e-2)  # same class, other place
    assert not torch.allclose(diffusion.sample(torch.tensor([0, 1]), seed=4, steps=10)[1], images[1], atol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_has_a_row_per_class(tmp_path: Any, channels: int) -> None:
    from PIL import Image

    diffusion = tiny_diffusion(config=tiny_experiment().diffusion, channels=channels)
    write_grid(tmp_path / "grid.png", diffusion, seed=0, columns=4)
    grid = np.asarray(Image.open(tmp_path / "grid.png")).reshape(len(CLASSES) * 8, 4 * 8, channels)
    labels = torch.arange(3).repeat_interleave(4)
    tile = (diffusion.sample(labels, 0)[5] * 255).round().byte().permute(1, 2, 0).numpy()  # class 1, second column
    assert np.array_equal(grid[8:16, 8:16], tile)


def test_ddim_of_one_step_begins_at_the_noise() -> None:
    """Not at t = 0, where what it begins with would pass for an image."""
    asked = []

    def model(x: torch.Tensor, t: torch.Tensor, *_: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        asked.append(int(t[0]))
        return torch.zeros_like(x), {}

    ddim_sample(model, Schedule(T, 1e-3, 0.2), Y, start(), 1)  # type: ignore[arg-type]
    assert asked == [T - 1]
