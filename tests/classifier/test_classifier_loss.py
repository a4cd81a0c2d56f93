"""Eq. 7-10 against plain formulas; eq. 7 with a real gradient through the frozen model."""

import math

import numpy as np
import pytest
import torch

from dcube.classifier.objective import ClassifierObjective, consistency_loss, cycle_loss
from dcube.classifier.train import ClassifierLoss
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.schedule import Schedule
from dcube.features.frozen import FrozenFeatures
from tiny import tiny_denoiser, tiny_diffusion, tiny_experiment


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def denoiser() -> Denoiser:
    return tiny_denoiser().eval().requires_grad_(False)


T, Y = torch.tensor([2, 7, 15, 19]), torch.tensor([0, 2, 1, 1])


def test_eq_7_is_the_mean_square_of_two_predictions(denoiser: Denoiser) -> None:
    x_t, logits = draw(4, 1, 8, 8), draw(4, 3, seed=1)
    table, terms = denoiser.labels.weight, []
    for i in range(4):
        soft = sum(math.exp(v) * table[k] for k, v in enumerate(logits[i].tolist()))
        soft = soft / sum(math.exp(v) for v in logits[i].tolist())
        *_, (_, mixed) = denoiser._run(x_t[i : i + 1], T[i : i + 1], soft[None])
        *_, (_, true) = denoiser._run(x_t[i : i + 1], T[i : i + 1], table[Y[i]][None])
        terms.append((mixed - true).square().mean().item())
    assert min(terms) > 0
    assert math.isclose(cycle_loss(denoiser, x_t, T, Y, logits).item(), sum(terms) / 4, rel_tol=1e-10)


def test_eq_7_has_a_gradient_on_the_logits_and_none_on_the_diffusion_model(denoiser: Denoiser) -> None:
    x_t, logits = draw(4, 1, 8, 8), draw(4, 3, seed=1).requires_grad_()
    cycle_loss(denoiser, x_t, T, Y, logits).backward()
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    assert logits.grad is not None and logits.grad.abs().max() > 0
    step, numeric = 1e-5, torch.zeros_like(logits)
    with torch.no_grad():
        for i in range(4):
            for k in range(3):
                nudge = torch.zeros_like(logits)
                nudge[i, k] = step
                after, before = (cycle_loss(denoiser, x_t, T, Y, logits + s * nudge) for s in (1, -1))
                numeric[i, k] = (after - before) / (2 * step)
    torch.testing.assert_close(logits.grad, numeric, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("prediction", "factor"), [("x0", "signal / deviation"), ("v", "signal")])
def test_eq_7_compares_noise_whatever_the_denoiser_predicts(denoiser: Denoiser, prediction: str, factor: str) -> None:
    """A difference of x_0 or v is one of noise times -sqrt(bar / (1 - bar)) or sqrt(bar), image by image."""
    schedule = Schedule(20, 1e-3, 0.3, prediction=prediction)
    x_t, logits = draw(4, 1, 8, 8), draw(4, 3, seed=1)
    terms = []
    for i in range(4):
        bar = schedule.alpha_bar[T[i]].item()
        scale = math.sqrt(bar / (1 - bar)) if factor == "signal / deviation" else math.sqrt(bar)
        plain = cycle_loss(denoiser, x_t[i : i + 1], T[i : i + 1], Y[i : i + 1], logits[i : i + 1]).item()
        terms.append(scale**2 * plain)
    assert math.isclose(cycle_loss(denoiser, x_t, T, Y, logits, schedule).item(), sum(terms) / 4, rel_tol=1e-6)
    noise = Schedule(20, 1e-3, 0.3)
    assert torch.equal(cycle_loss(denoiser, x_t, T, Y, logits, noise), cycle_loss(denoiser, x_t, T, Y, logits))


def test_eq_7_vanishes_for_a_certain_and_right_prediction(denoiser: Denoiser) -> None:
    sure = torch.nn.functional.one_hot(Y, 3).double() * 1000
    assert cycle_loss(denoiser, draw(4, 1, 8, 8), T, Y, sure).item() == 0
    assert cycle_loss(denoiser, draw(4, 1, 8, 8), T, Y, sure.roll(1, dims=1)).item() > 1e-4


def test_eq_8() -> None:
    a, b = draw(5, 3), draw(5, 3, seed=1)
    expected = sum((a[i, k].item() - b[i, k].item()) ** 2 for i in range(5) for k in range(3))
    assert math.isclose(consistency_loss(a, b).item(), expected / 5, rel_tol=1e-12)


def plain_cross_entropy(logits: torch.Tensor, y: torch.Tensor, weights: list[float]) -> float:
    total = scale = 0.0
    for row, label in zip(logits.tolist(), y.tolist(), strict=True):
        total += weights[label] * (math.log(sum(math.exp(v) for v in row)) - row[label])
        scale += weights[label]
    return total / scale


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_eq_9_and_10(weights: list[float] | None) -> None:
    logits, mirrored, cycle = draw(4, 3), draw(4, 3, seed=1), torch.tensor(0.37, dtype=torch.float64)
    objective = ClassifierObjective(10, 0.1, None if weights is None else torch.tensor(weights))
    loss, parts = objective(logits, Y, cycle, mirrored)
    cross_entropy = plain_cross_entropy(logits, Y, weights or [1, 1, 1])
    consistency = (logits - mirrored).square().sum().item() / 4
    assert math.isclose(parts["cross_entropy"].item(), cross_entropy, rel_tol=1e-12)
    assert math.isclose(loss.item(), cross_entropy + 10 * 0.37 + 0.1 * consistency, rel_tol=1e-12)
    only, names = objective(logits, Y, None, None)
    assert set(names) == {"cross_entropy"} and math.isclose(only.item(), cross_entropy, rel_tol=1e-12)


class Linear(torch.nn.Module):
    """Stands in for the classifier: logits from the image and the first map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = torch.nn.Parameter(draw(32 * 32, 3, seed=3).float() / 32)
        self.feature = torch.nn.Parameter(draw(width, 3, seed=4).float() / 32)

    def forward(self, images: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        return images.flatten(1) @ self.image + maps[0].flatten(1) @ self.feature


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_step_joins_the_parts_as_eq_10_says(fraction: float) -> None:
    """Logits of the image and of its mirror image, each with its own features; the cycle term on x_t."""
    experiment = tiny_experiment(
        features={"timesteps": None},
        classifier={"lambda_cycle": 3, "lambda_consistency": 0.2, "cycle_fraction": fraction},
    )
    diffusion = tiny_diffusion()
    frozen = FrozenFeatures(diffusion, [2], "clean", 4)
    model = Linear(int(np.prod(frozen.shapes[0])))
    batch = {
        "large": draw(4, 1, 32, 32).float(), "small": torch.rand(4, 1, 8, 8), "y": Y, "t": T,
        "cycle_t": T.flip(0), "cycle_noise": draw(4, 1, 8, 8, seed=7).float(),
    }  # fmt: skip
    loss, parts = ClassifierLoss(experiment, frozen, Y.numpy(), 3)(model, batch, 0)

    logits = model(batch["large"], [m.clone() for m in frozen(batch["small"], T)])
    mirrored = model(batch["large"].flip(-1), [m.clone() for m in frozen(batch["small"].flip(-1), T)])
    part = int(4 * fraction)
    x_t = diffusion.schedule.add_noise(batch["small"] * 2 - 1, batch["cycle_noise"], batch["cycle_t"])[:part]
    cycle = cycle_loss(diffusion.model, x_t, batch["cycle_t"][:part], Y[:part], logits[:part])
    expected = plain_cross_entropy(logits, Y, [1, 1, 1]) + 3 * cycle + 0.2 * consistency_loss(logits, mirrored)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad is None for p in diffusion.model.parameters())


def test_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2] * 3)
    experiment = tiny_experiment(data={"balance": "weights"})
    loss = ClassifierLoss(experiment, FrozenFeatures(tiny_diffusion(), [0], "clean", 4), labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert loss.objective.class_weights is not None
    np.testing.assert_allclose(loss.objective.class_weights.numpy(), expected, rtol=1e-6)


def test_eq_7_takes_the_prediction_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to bf16, what is nearly certain would be certain, and have no gradient."""
    denoiser = tiny_denoiser().float().eval().requires_grad_(False)
    seen, real = [], denoiser.forward

    def watched(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> object:
        seen.append(y.dtype)
        return real(x, t, y)

    monkeypatch.setattr(denoiser, "forward", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cycle_loss(denoiser, draw(4, 1, 8, 8).float(), T, Y, draw(4, 3, seed=1).bfloat16())
    assert seen == [torch.int64, torch.float32]
