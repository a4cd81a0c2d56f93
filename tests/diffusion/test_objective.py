"""Eq. 3-5 against plain readings in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from dcube.config import ContrastiveConfig, DiffusionConfig
from dcube.diffusion.contrastive import contrastive_loss, pair_distance
from dcube.diffusion.objective import GenerativeObjective, loss_weights, noise_loss
from dcube.diffusion.schedule import Schedule
from tiny import tiny_denoiser


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_eq_3_is_the_mean_square_over_all_values() -> None:
    a, b = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    total = sum((p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert math.isclose(noise_loss(a, b).item(), total / a.numel(), rel_tol=1e-12)


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16])
def test_losses_are_formed_in_full_precision(low: torch.dtype) -> None:
    a, b = draw(2, 1, 4, 4).to(low), draw(2, 1, 4, 4, seed=1).to(low)
    assert noise_loss(a, b).dtype == torch.float32
    assert noise_loss(a.double(), b.double()).dtype == torch.float64


def plain_distance(f1: np.ndarray, f2: np.ndarray, distance: str) -> float:
    if distance == "pooled":
        f1, f2 = f1.mean(axis=(1, 2)), f2.mean(axis=(1, 2))
        f1, f2 = f1 / math.sqrt((f1**2).sum()), f2 / math.sqrt((f2**2).sum())
    return math.sqrt(((f1 - f2) ** 2).sum())


@pytest.mark.parametrize("distance", ["paper", "pooled"])
def test_distance_of_eq_4(distance: str) -> None:
    f1, f2 = draw(5, 6, 3, 3), draw(5, 6, 3, 3, seed=1)
    expected = [plain_distance(a, b, distance) for a, b in zip(f1.numpy(), f2.numpy(), strict=True)]
    np.testing.assert_allclose(pair_distance(f1, f2, distance).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("distance", ["paper", "pooled"])
def test_equal_features_give_a_zero_gradient_not_nan(distance: str) -> None:
    f1, f2 = draw(4, 6, 3, 3).requires_grad_(), draw(4, 6, 3, 3)
    loss, _ = contrastive_loss(pair_distance(f1, f2, distance), torch.tensor([True, False, True, False]), margin=0.1)
    loss.backward()
    assert f1.grad is not None and torch.equal(f1.grad, torch.zeros_like(f1.grad))


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 5), ("sum", 1)])
def test_eq_4(reduction: str, divisor: int) -> None:
    d, same, margin = [0.03, 0.5, 0.02, 0.09, 0.7], [True, True, False, False, False], 0.1
    loss, active = contrastive_loss(torch.tensor(d).double(), torch.tensor(same), margin, reduction)
    terms = []
    for value, equal in zip(d, same, strict=True):
        target = 0 if equal else 1
        terms.append((1 - target) * value + target * max(margin - value, 0))
    assert math.isclose(loss.item(), sum(terms) / divisor, rel_tol=1e-6)
    assert math.isclose(active.item(), 2 / 3, rel_tol=1e-6)  # 0.02 and 0.09 of the three other-class pairs


def test_no_pair_of_other_classes_means_no_active_hinge() -> None:
    assert contrastive_loss(torch.tensor([0.01]), torch.tensor([True]), 0.1)[1].item() == 0


@pytest.fixture
def batch() -> dict[str, Any]:
    return {
        "x": draw(4, 2, 1, 8, 8), "y": torch.tensor([[0, 0], [1, 2], [2, 2], [0, 1]]),
        "same": torch.tensor([True, False, True, False]), "t": torch.tensor([0, 5, 11, 19]),
        "noise": draw(4, 1, 8, 8, seed=2),
        "dropped": torch.tensor([[False, True], [False, False], [True, True], [False, False]]),
    }  # fmt: skip


@pytest.mark.parametrize("distance", ["paper", "pooled"])
@pytest.mark.parametrize("label", ["null", "true"])
def test_eq_5_is_the_sum_of_its_parts_from_two_forwards(batch: dict[str, Any], distance: str, label: str) -> None:
    """Both images of a pair get the same t and noise; the contrastive term sees the null or the given label."""
    model, schedule, margin, weight = tiny_denoiser(), Schedule(20), 0.6, 0.7
    config = ContrastiveConfig(weight=weight, distance=distance, label=label, margin=margin)  # type: ignore[arg-type]
    loss, parts = GenerativeObjective(schedule, config, model.middle)(model, **batch)

    diffusion, features = 0.0, []
    for i in (0, 1):
        x_t = schedule.add_noise(batch["x"][:, i], batch["noise"], batch["t"])
        y = torch.where(batch["dropped"][:, i], model.null_label, batch["y"][:, i])
        predicted, tapped = model(x_t, batch["t"], y, (model.middle,))
        diffusion += (predicted - batch["noise"]).square().mean().item()
        if label == "null":
            _, tapped = model(x_t, batch["t"], torch.full((4,), model.null_label), (model.middle,))
        features.append(tapped[model.middle].detach().numpy())
    d = [plain_distance(a, b, distance) for a, b in zip(*features, strict=True)]
    terms = [v if s else max(margin - v, 0) for v, s in zip(d, batch["same"].tolist(), strict=True)]
    contrastive = sum(terms) / (len(terms) if distance == "pooled" else 1)

    assert math.isclose(parts["diffusion"].item(), diffusion, rel_tol=1e-10)
    assert math.isclose(parts["contrastive"].item(), contrastive, rel_tol=1e-10)
    assert math.isclose(loss.item(), diffusion + weight * contrastive, rel_tol=1e-10)
    active = sum(v < margin for v, s in zip(d, batch["same"].tolist(), strict=True) if not s) / 2
    assert math.isclose(parts["active_share"].item(), active, abs_tol=1e-6)


def test_the_null_reading_cannot_know_the_label(batch: dict[str, Any]) -> None:
    def contrastive(label: str, y: torch.Tensor) -> float:
        config = ContrastiveConfig(distance="paper", label=label)  # type: ignore[arg-type]
        model = tiny_denoiser()
        _, parts = GenerativeObjective(Schedule(20), config, model.middle)(model, **batch | {"y": y})
        return parts["contrastive"].item()

    other = (batch["y"] + 1) % 3
    assert contrastive("null", batch["y"]) == contrastive("null", other)
    assert contrastive("true", batch["y"]) != contrastive("true", other)


def test_without_weight_there_is_no_contrastive_part(batch: dict[str, Any]) -> None:
    model = tiny_denoiser()
    loss, parts = GenerativeObjective(Schedule(20), ContrastiveConfig(weight=0), model.middle)(model, **batch)
    assert set(parts) == {"diffusion"} and loss.item() == parts["diffusion"].item()


def test_eq_5_reaches_every_parameter(batch: dict[str, Any]) -> None:
    model = tiny_denoiser()
    GenerativeObjective(Schedule(20), ContrastiveConfig(), model.middle)(model, **batch)[0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def weights_of(prediction: str, weighting: str, gamma: float | None = None) -> tuple[Schedule, torch.Tensor]:
    """The schedule and its weights [T] under a configuration; 1 where there are none."""
    settings = {"timesteps": 50, "prediction": prediction, "weighting": weighting, "gamma": gamma}
    config = DiffusionConfig.model_validate(settings)
    schedule = Schedule.of(config)
    weights = loss_weights(schedule, config)
    return schedule, torch.ones(50, dtype=torch.float64) if weights is None else weights


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_a_weighting_means_the_same_for_every_prediction(weighting: str) -> None:
    """One estimate of x_0, told as noise, x_0 or v, costs the same: |noise|^2 is SNR, |v|^2 SNR + 1 times |x_0|^2."""
    x0, noise, guess = draw(3, 50, 1, 4, 4)
    losses, plain = [], []
    for prediction in ("noise", "x0", "v"):
        schedule, weights = weights_of(prediction, weighting)
        signal, deviation = (f.sqrt().view(-1, 1, 1, 1) for f in (schedule.alpha_bar, 1 - schedule.alpha_bar))
        x_t = signal * x0 + deviation * noise
        implied = (x_t - signal * guess) / deviation
        told = {"noise": (implied, noise), "x0": (guess, x0)}
        told["v"] = tuple(signal * e - deviation * x for e, x in ((implied, guess), (noise, x0)))
        losses.append(noise_loss(*told[prediction], weights).item())
        plain.append(noise_loss(*told[prediction]).item())
    np.testing.assert_allclose(losses, losses[0], rtol=1e-9)
    assert len({round(value, 6) for value in plain}) == 3  # without a weighting they are three losses


@pytest.mark.parametrize(("gamma", "given"), [(5.0, None), (1.0, 1.0)])
def test_min_snr_weights_are_those_of_the_paper(gamma: float, given: float | None) -> None:
    """Hang et al. 2023: min(SNR, gamma) over 1 (x_0), SNR (noise), SNR + 1 (v)."""
    for prediction in ("noise", "x0", "v"):
        schedule, weights = weights_of(prediction, "min_snr", given)
        for t in range(50):
            snr = schedule.alpha_bar[t].item() / (1 - schedule.alpha_bar[t].item())
            expected = min(snr, gamma) / {"noise": snr, "x0": 1, "v": snr + 1}[prediction]
            assert math.isclose(weights[t].item(), expected, rel_tol=1e-12)


def test_p2_weights_of_the_noise_are_those_of_the_paper() -> None:
    """Choi et al. 2022, eq. 8 with k = 1: the simple loss times 1 / (1 + SNR)^gamma = (1 - alpha_bar)^gamma."""
    for given, gamma in ((None, 1.0), (0.5, 0.5)):
        schedule, weights = weights_of("noise", "p2", given)
        torch.testing.assert_close(weights, (1 - schedule.alpha_bar) ** gamma, rtol=1e-10, atol=0)


@pytest.mark.parametrize("prediction", ["noise", "x0", "v"])
@pytest.mark.parametrize("weighting", ["none", "min_snr"])
def test_eq_5_with_another_prediction_and_weights(batch: dict[str, Any], prediction: str, weighting: str) -> None:
    model, schedule = tiny_denoiser(), Schedule(20, prediction=prediction)
    config = DiffusionConfig.model_validate({"timesteps": 20, "prediction": prediction, "weighting": weighting})
    weights = loss_weights(schedule, config)
    objective = GenerativeObjective(schedule, ContrastiveConfig(weight=0), model.middle, weights=weights)
    loss, _ = objective(model, **batch)
    expected = 0.0
    for i in (0, 1):
        x0, noise, t = batch["x"][:, i], batch["noise"], batch["t"]
        y = torch.where(batch["dropped"][:, i], model.null_label, batch["y"][:, i])
        output, _ = model(schedule.add_noise(x0, noise, t), t, y)
        bar = schedule.alpha_bar[t].view(-1, 1, 1, 1)
        wanted = {"noise": noise, "x0": x0, "v": bar.sqrt() * noise - (1 - bar).sqrt() * x0}[prediction]
        for j in range(4):
            factor = 1 if weights is None else weights[t[j]].item()
            expected += factor * (output[j] - wanted[j]).square().mean().item() / 4
    assert math.isclose(loss.item(), expected, rel_tol=1e-6)


def test_the_network_is_told_the_augmentation_of_each_image(batch: dict[str, Any]) -> None:
    """Also in the forward of eq. 4; and nothing told is the same as zeros."""
    model = tiny_denoiser(augmentation={"probability": 0.5})
    objective = GenerativeObjective(Schedule(20), ContrastiveConfig(distance="paper"), model.middle)
    told = draw(4, 2, 7, seed=3)
    loss, _ = objective(model, **batch, augmentation=told)
    assert objective(model, **batch)[0].item() != loss.item()
    zeros = objective(model, **batch, augmentation=torch.zeros_like(told))[0].item()
    assert zeros == objective(model, **batch)[0].item()
    swapped = {name: value.flip(1) if name in ("x", "y", "dropped") else value for name, value in batch.items()}
    again, _ = objective(model, **swapped, augmentation=told.flip(1))  # the pair the other way round
    assert math.isclose(again.item(), loss.item(), rel_tol=1e-10)
