"""DiffMIC against the closed form of its chain, and its guidance against planted saliency."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dcube.baselines import diffmic, guidance
from dcube.baselines.backbones import Request
from dcube.diffusion.schedule import Schedule
from dcube.training.order import torch_rng

F64 = torch.float64
ALPHA = Schedule().alpha
BARS = Schedule().alpha_bar


SIZES: dict[str, Any] = {"width": 16, "steps": 20, "draws": 4, "pretraining": 0.3}


def small(spread: float = 0.0) -> diffmic.DiffMIC:
    build = diffmic.diffmic("test_resnet", "test_resnet", spread=spread, **SIZES)
    system, _ = build(Request(3, 32, "none"))
    assert isinstance(system, diffmic.DiffMIC)
    return system


def vectors(count: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(4, 3, dtype=F64) for _ in range(count))


@pytest.mark.parametrize("t", [0, 1, 17, 400, 999])
def test_forward_is_the_composition_of_single_steps(t: int) -> None:
    """y_t = sqrt(alpha_t) y_(t-1) + (1 - sqrt(alpha_t)) y_hat + sqrt(beta_t) noise, step after step, in float64."""
    y0, prior, noise = vectors(3)
    mean, variance = y0, 0.0
    for step in range(t + 1):
        root = ALPHA[step].sqrt()
        mean, variance = root * mean + (1 - root) * prior, ALPHA[step] * variance + 1 - ALPHA[step]
    bar = BARS[t].view(1, 1)
    torch.testing.assert_close(diffmic.noised_label(y0, prior, noise, bar), mean + variance**0.5 * noise)
    y_t = diffmic.noised_label(y0, prior, noise, bar)
    torch.testing.assert_close(diffmic.implied_label(y_t, prior, noise, bar), y0)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (16, 17), (3, 400), (980, 999), (998, 999)])
def test_reverse_step_is_bayes_rule(s: int, t: int) -> None:
    """The product of q(y_t | y_s) and q(y_s | y_0) as Gaussians in y_s, also where steps are left out."""
    y0, prior, y_t = vectors(3)
    root_s, root = BARS[s].sqrt(), (BARS[t] / BARS[s]).sqrt()
    before_mean, before_variance = root_s * y0 + (1 - root_s) * prior, 1 - BARS[s]
    seen, noise = y_t - (1 - root) * prior, 1 - root**2  # seen = root * y_s + noise
    precision = 1 / before_variance + root**2 / noise
    expected = (before_mean / before_variance + root * seen / noise) / precision
    mean, variance = diffmic.label_posterior(y_t, y0, prior, BARS[t], BARS[s])
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_chain_with_the_true_noise_ends_at_the_label(steps: int) -> None:
    system = small()
    system.times = [round(float(t)) for t in torch.linspace(0, 999, steps)] if steps > 1 else [999]
    y0 = torch.eye(3, dtype=F64)[torch.tensor([0, 2, 1, 1, 0])]
    many = y0.repeat(system.draws, 1)

    class Oracle(nn.Module):
        def forward(self, feature: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            bar = BARS[t][:, None]
            return (y - bar.sqrt() * many - (1 - bar.sqrt()) * prior) / (1 - bar).sqrt()

    system.denoiser = Oracle()
    prior = torch.rand(5, 3, dtype=F64)
    made = system.sample(torch.zeros(5, 1, dtype=F64), prior, seed=0)
    assert made.shape == (system.draws, 5, 3)
    torch.testing.assert_close(made, y0.expand_as(made), rtol=0, atol=1e-6)


def test_chain_starts_at_the_prior_and_differs_by_seed() -> None:
    system = small()
    starts: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, feature: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            starts.append(y - prior)
            return torch.zeros_like(y)

    system.denoiser, prior = Spy(), torch.rand(6, 3)
    for seed in (0, 1, 0):
        system.sample(torch.zeros(6, 1), prior, seed)
    first = [start.view(system.draws, 6, 3) for start in starts[:: len(system.times)]]
    assert torch.allclose(first[0], first[2]) and not torch.allclose(first[0], first[1])
    assert (first[0] - first[0][:, :1]).abs().max() < 1e-6  # the images share the noise of a chain
    assert (first[0][0] - first[0][1]).abs().max() > 0.1  # the chains do not


def test_spread_is_the_noise_of_gaussian_labels() -> None:
    """Regression of noise on y_t in simulated labels; and an idle network then returns its prior's neighbourhood."""
    prior, bar, spread = torch.full((200_000, 1), 0.7, dtype=F64), BARS[300].view(1, 1), 0.3
    y0, noise = prior + spread * torch.randn_like(prior), torch.randn_like(prior)
    y_t = diffmic.noised_label(y0, prior, noise, bar)
    predicted = diffmic.gaussian_noise(y_t, prior, bar, spread)
    slope = ((y_t - prior) * noise).mean() / (y_t - prior).square().mean()
    assert float((predicted / (y_t - prior))[0]) == pytest.approx(float(slope), rel=0.01)

    system = small(spread=0.05)

    class Idle(nn.Module):
        def forward(self, feature: torch.Tensor, y: torch.Tensor, prior: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(y)

    system.denoiser = Idle()
    sure = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]])
    made = system.sample(torch.zeros(2, 1), sure, seed=0)
    assert (made - sure).abs().mean() < 0.1 and made.min() > -0.01 and made.max() < 1.01


def test_mmd() -> None:
    a, b = torch.randn(5, 3, dtype=F64), torch.randn(4, 3, dtype=F64)

    def mean_kernel(u: torch.Tensor, v: torch.Tensor) -> float:
        values = [math.exp(-float((p - q) @ (p - q)) / 9) for p in u for q in v]
        return sum(values) / len(values)

    expected = mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
    assert float(diffmic.mmd(a, b)) == pytest.approx(expected)
    assert float(diffmic.mmd(a, a)) == pytest.approx(0, abs=1e-12)
    assert diffmic.mmd(a, a + 3) > diffmic.mmd(a, a + 1) > 0


def test_guidance_learns_from_its_own_loss_alone() -> None:
    """And noise and timesteps come from the generator."""
    system = small()
    images, labels = torch.rand(6, 1, 32, 32), torch.arange(6) % 3
    state = {name: value.clone() for name, value in system.state_dict().items()}

    def gradients(stage: int) -> dict[str, torch.Tensor]:
        system.load_state_dict(state)
        system.zero_grad()
        loss, _ = system.stages()[stage].loss(images, labels, torch_rng(0, "x"))
        loss.backward()
        return {name: p.grad.clone() for name, p in system.guidance.named_parameters()}

    alone, together = gradients(0), gradients(1)
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    losses = []
    for seed in (0, 0, 1):
        system.load_state_dict(state)
        losses.append(system.loss(images, labels, torch_rng(seed, "x"))[0].item())
    assert losses[0] == losses[1] != losses[2]
    assert system.guidance.training


def test_windows_are_found_where_saliency_was_planted() -> None:
    saliency = torch.zeros(2, 3, 7, 7)
    saliency[0, 0, 2, 5], saliency[0, 1, 6, 0], saliency[0, 1, 4, 4] = 9.0, 5.0, 1.0  # each map is brought to 0 .. 1
    saliency[1] = -1
    saliency[1, :, 3, 1], saliency[1, 2, 0, 0] = 2.0, 1.0
    corners = guidance.greedy_windows(saliency, 1, 3)
    assert {tuple(c) for c in corners[0, :2].tolist()} == {(2, 5), (6, 0)} and corners[0, 2].tolist() == [4, 4]
    assert corners[1, :2].tolist() == [[3, 1], [0, 0]]
    flat = guidance.greedy_windows(torch.full((1, 2, 2, 2), 0.1) + 1e-9 * torch.rand(1, 2, 2, 2), 1, 4)
    assert flat[0].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    wide = torch.zeros(1, 1, 6, 6)
    wide[0, 0, 2:4, 2:4], wide[0, 0, 0, 5] = 1.0, 0.5
    assert guidance.greedy_windows(wide, 2, 2)[0].tolist() == [[2, 2], [0, 4]]


def test_crops_are_slices() -> None:
    images = torch.rand(2, 3, 20, 20)
    corners = torch.tensor([[[0, 0], [4, 7]], [[12, 12], [3, 0]]])
    crops = guidance.crop(images, corners, 8)
    for image in range(2):
        for number, (row, column) in enumerate(corners[image].tolist()):
            assert torch.equal(crops[image, number], images[image, :, row : row + 8, column : column + 8])


def test_pooling() -> None:
    maps = torch.arange(20.0).view(1, 1, 4, 5)
    assert guidance.top_share(maps, 1.0).item() == 9.5 and guidance.top_share(maps, 0.1).item() == 18.5
    attention = guidance.GatedAttention(6, 4)
    same = torch.randn(2, 1, 6).expand(-1, 5, -1)
    torch.testing.assert_close(attention(same), same[:, 0])
    mixed = torch.randn(1, 3, 6)
    scores = torch.stack(
        [
            attention.score.weight[0] @ (torch.tanh(attention.value.weight @ x) * (attention.gate.weight @ x).sigmoid())
            for x in mixed[0]
        ]
    )
    torch.testing.assert_close(attention(mixed)[0], (scores.softmax(0)[:, None] * mixed[0]).sum(0))


def test_at_the_size_of_the_paper_six_crops_of_32_px() -> None:
    system, _ = guidance.guided("test_resnet")(Request(2, 224, "none"))
    saliency = torch.zeros(1, 2, 7, 7)
    saliency[0, 0, 3, 6] = 1.0
    images = torch.rand(1, 1, 224, 224)
    crops = system.cut(images, saliency)
    assert crops.shape == (1, 6, 1, 32, 32) and torch.equal(crops[0, 0], images[0, :, 96:128, 192:224])


def test_encoder_may_begin_as_the_guidance_does(tmp_path: Path) -> None:
    """With the weights of the request, in parameters of its own; the table says so."""
    file = tmp_path / "weights.safetensors"
    save_file(guidance.backbone("test_resnet", Request(3, 32, "none")).cnn.state_dict(), file)
    system, said = diffmic.diffmic("test_resnet", **SIZES)(Request(3, 32, "none", file))
    assert isinstance(system, diffmic.DiffMIC)
    assert said == "guidance file weights.safetensors; encoder file weights.safetensors"
    for theirs, ours in zip(system.guidance.coarse.parameters(), system.denoiser.encoder.parameters(), strict=True):
        assert theirs is not ours and torch.equal(theirs, ours)
    system, said = diffmic.diffmic("test_resnet", "test_resnet", **SIZES)(Request(3, 32, "none", file))
    assert said == "guidance file weights.safetensors; encoder random"
