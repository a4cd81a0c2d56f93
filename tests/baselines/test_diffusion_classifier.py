"""The diffusion model as a classifier, on a denoiser whose answer is known in closed form."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dcube.baselines.diffusion_classifier import denoising_errors, diffusion_classifier
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from tiny import tiny_diffusion

MEANS = torch.tensor([-0.6, 0.0, 0.7])
SPREAD = 0.1


class OfGaussians(Denoiser):
    """The best noise prediction for images whose pixels are N(mean of the class, SPREAD^2)."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.blocks = ()
        self.schedule, self.seen = Schedule(50), []  # type: ignore[var-annotated]

    def _run(self, x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        mean = self.asked[:, None, None, None]
        bar = self.schedule.alpha_bar[t].float()[:, None, None, None]
        self.seen.append((x_t, t))
        yield "noise", (1 - bar).sqrt() * (x_t - bar.sqrt() * mean) / (bar * SPREAD**2 + 1 - bar)

    def embed_label(self, y: torch.Tensor | None, batch: int) -> torch.Tensor:
        assert y is not None
        self.asked = MEANS[y]
        return super().embed_label(y, batch)


def gaussians() -> Diffusion:
    model = OfGaussians()
    return replace(tiny_diffusion(), model=model, schedule=model.schedule)


def test_the_class_of_the_nearest_mean_wins() -> None:
    """With equal spreads Bayes' rule takes the nearest mean; an image is its pixels' mean."""
    centres = torch.tensor([-0.6, -0.35, -0.25, 0.1, 0.3, 0.4, 0.9])
    images = ((centres[:, None, None, None] + SPREAD * torch.randn(7, 1, 16, 16)) + 1) / 2
    nearest = ((images * 2 - 1).mean((1, 2, 3))[:, None] - MEANS).abs().argmin(1)
    probabilities = diffusion_classifier(gaussians(), images, draws=8, seed=0)
    assert probabilities.dtype == torch.float64
    assert torch.equal(probabilities.argmax(1), nearest)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7, dtype=torch.float64))


def test_errors_are_the_equation() -> None:
    """One image, by hand; draws lie evenly over the chain and are shared by classes and images."""
    diffusion, images = gaussians(), torch.rand(3, 1, 8, 8)
    errors = denoising_errors(diffusion, images, draws=4, seed=3)
    seen = diffusion.model.seen
    assert [int(t[0]) for _, t in seen] == [6, 18, 31, 43]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for x_t, t in seen:
        bar = diffusion.schedule.alpha_bar[t[0]]
        x_t = x_t.view(3, 3, 1, 8, 8)  # image, class
        assert torch.equal(x_t[:, 0], x_t[:, 1])
        noise = (x_t[:, 0] - bar.sqrt() * (images * 2 - 1)) / (1 - bar).sqrt()
        torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=2e-5)
        for k in range(3):
            guess = (1 - bar).sqrt() * (x_t[:, 0] - bar.sqrt() * MEANS[k]) / (bar * SPREAD**2 + 1 - bar)
            expected[:, k] += (guess - noise).square().sum((1, 2, 3)) / 4
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_whatever_the_network_predicts(prediction: str) -> None:
    """The same knowledge of the classes, given as x_0 or v, has the same errors of the noise."""
    images, plain = torch.rand(3, 1, 8, 8), gaussians()
    other = gaussians()
    schedule = Schedule(50, prediction=prediction)
    run = other.model._run

    def converted(x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        _, noise = next(run(x_t, t, label))
        bar = schedule.alpha_bar[t].float()[:, None, None, None]
        x0 = (x_t - (1 - bar).sqrt() * noise) / bar.sqrt()
        yield "noise", x0 if prediction == "x0" else bar.sqrt() * noise - (1 - bar).sqrt() * x0

    other.model._run = converted  # type: ignore[method-assign]
    errors = denoising_errors(replace(other, schedule=schedule), images, draws=3, seed=0)
    torch.testing.assert_close(errors, denoising_errors(plain, images, draws=3, seed=0), rtol=1e-2, atol=1e-2)


def test_alone_as_among_others_and_by_the_seed() -> None:
    diffusion, images = tiny_diffusion(), torch.rand(50, 1, 8, 8)
    together = diffusion_classifier(diffusion, images, draws=2, seed=0)
    alone = diffusion_classifier(diffusion, images[48:49], draws=2, seed=0)
    torch.testing.assert_close(alone, together[48:49], rtol=1e-4, atol=1e-6)
    assert not torch.equal(diffusion_classifier(diffusion, images, 2, 1), together)


@pytest.mark.parametrize("draws", [0, 11])
def test_at_most_ten_draws(draws: int) -> None:
    with pytest.raises(InputError, match=f"1 .. 10 draws of noise, not {draws}"):
        diffusion_classifier(tiny_diffusion(), torch.rand(1, 1, 8, 8), draws, 0)
