"""Eq. 4's repaired forms and its relatives against plain loops in float64; the heads that only training has."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dcube.config import AlignConfig, ContrastiveConfig, DiffusionConfig
from dcube.diffusion.build import add_side_heads, build_denoiser
from dcube.diffusion.contrastive import (
    alignment_loss,
    all_pairs,
    auxiliary_loss,
    label_term,
    pair_distance,
    supervised_contrastive,
)  # fmt: skip
from dcube.diffusion.objective import GenerativeObjective
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import train_diffusion
from dcube.features.teacher import CnnTeacher, make_teacher
from dcube.training.state import load_weights
from tiny import tiny_data, tiny_experiment

Y = torch.tensor([0, 0, 1, 2, 0, 1])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(v: np.ndarray) -> np.ndarray:
    return v / math.sqrt((v**2).sum())


def test_centred_distances_do_not_see_what_all_features_share() -> None:
    f1, f2 = draw(4, 6, 3, 3), draw(4, 6, 3, 3, seed=1)
    pooled = np.concatenate([f1.numpy(), f2.numpy()]).mean((2, 3))
    pooled = pooled - pooled.mean(0)
    expected = [math.sqrt(((unit(a) - unit(b)) ** 2).sum()) for a, b in zip(pooled[:4], pooled[4:], strict=True)]
    np.testing.assert_allclose(pair_distance(f1, f2, "centred").numpy(), expected, rtol=1e-12)
    shared = 100 * draw(1, 6, 1, 1, seed=2)
    moved = pair_distance(f1 + shared, f2 + shared, "centred")
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-9)
    assert pair_distance(f1 + shared, f2 + shared, "pooled").max() < 0.05 < min(expected)


def test_all_pairs_are_every_pair_once_and_balanced() -> None:
    f1, f2, same, weight = all_pairs(Y.double()[:, None], Y)
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    assert same.tolist() == [Y[i] == Y[j] for i, j in pairs]
    assert f1[:, 0].tolist() == [Y[i] for i, _ in pairs] and f2[:, 0].tolist() == [Y[j] for _, j in pairs]
    assert math.isclose(weight[same].sum().item(), weight[~same].sum().item(), rel_tol=1e-6)
    assert math.isclose(weight.mean().item(), 1, rel_tol=1e-6)


def test_a_single_pair_counts_once() -> None:
    for y in (torch.tensor([0, 0]), torch.tensor([0, 1])):
        assert all_pairs(torch.ones(2, 3), y)[3].tolist() == [0.5]


@pytest.mark.parametrize("distance", ["paper", "pooled", "centred"])
def test_eq_4_over_all_pairs(distance: str) -> None:
    f, margin = draw(6, 5, 2, 2), 0.9
    config = ContrastiveConfig(distance=distance, pairs="all", margin=margin)  # type: ignore[arg-type]
    loss, parts = label_term(config, f, {}, Y, torch.ones(3, dtype=torch.bool))
    flat = f.flatten(1).numpy()
    if distance != "paper":
        flat = f.numpy().mean((2, 3))
        flat = flat - flat.mean(0) if distance == "centred" else flat
        flat = np.array([unit(v) for v in flat])
    terms: dict[bool, list[float]] = {True: [], False: []}
    for i in range(6):
        for j in range(i + 1, 6):
            d, same = math.sqrt(((flat[i] - flat[j]) ** 2).sum()), bool(Y[i] == Y[j])
            terms[same].append(d if same else max(margin - d, 0))
    assert math.isclose(loss.item(), (np.mean(terms[True]) + np.mean(terms[False])) / 2, rel_tol=1e-6)
    assert math.isclose(parts["active_share"].item(), np.mean([v > 0 for v in terms[False]]), abs_tol=1e-6)


def test_supervised_contrastive_against_a_loop() -> None:
    z, temperature = draw(6, 4), 0.3
    unit_z, terms = [unit(v) for v in z.numpy()], []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = sum(math.exp(unit_z[i] @ unit_z[j] / temperature) for j in others)
        logs = [math.log(math.exp(unit_z[i] @ unit_z[j] / temperature) / total) for j in others if Y[j] == Y[i]]
        terms.append(-np.mean(logs) if logs else None)
    per_class = [np.mean([terms[i] for i in range(6) if Y[i] == k]) for k in (0, 1)]  # class 2 has one image: no term
    assert math.isclose(supervised_contrastive(z, Y, temperature).item(), np.mean(per_class), rel_tol=1e-6)


def test_supervised_contrastive_is_not_rounded_by_autocast() -> None:
    z = 1 + 0.01 * draw(6, 4).float()  # of one network at one layer: cosines close to 1
    with torch.autocast("cpu", torch.bfloat16):
        rounded = supervised_contrastive(z, Y, 0.1)
    assert torch.equal(rounded, supervised_contrastive(z, Y, 0.1))


def test_supervised_contrastive_without_any_pair_is_zero_and_differentiable() -> None:
    z = draw(3, 4).requires_grad_()
    loss = supervised_contrastive(z, torch.tensor([0, 1, 2]), 0.1)
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and torch.isfinite(z.grad).all()


def test_the_auxiliary_loss_counts_classes_alike() -> None:
    logits = draw(6, 3)
    log_p = logits.log_softmax(1).numpy()
    per_class = [np.mean([-log_p[i, k] for i in range(6) if Y[i] == k]) for k in range(3)]
    assert math.isclose(auxiliary_loss(logits, Y).item(), np.mean(per_class), rel_tol=1e-6)


def test_alignment_is_one_minus_cosine_at_each_position() -> None:
    a, b = draw(2, 5, 3, 3), draw(2, 5, 3, 3, seed=1)
    cosines = [unit(a[n, :, i, j].numpy()) @ unit(b[n, :, i, j].numpy())
               for n in range(2) for i in range(3) for j in range(3)]  # fmt: skip
    assert math.isclose(alignment_loss(a, b).item(), 1 - np.mean(cosines), rel_tol=1e-9)
    assert alignment_loss(a, 3 * a).item() < 1e-12
    assert torch.isfinite(alignment_loss(a, draw(2, 5, 7, 7)))


@pytest.mark.parametrize("form", ["supervised", "auxiliary"])
@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_a_side_head_learns_and_the_label_stays_hidden(form: str, backbone: str) -> None:
    """Its gradient reaches the encoder and itself, not the table of the real labels."""
    settings = tiny_experiment(diffusion={
        "backbone": backbone, "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2}, "contrastive": {"form": form},
    }).diffusion  # fmt: skip
    model = build_denoiser(settings, 1, 3)
    add_side_heads(model, settings, None, seed=0)
    batch = {
        "x": draw(3, 2, 1, 8, 8).float(), "y": Y.view(3, 2), "same": torch.tensor([True, False, False]),
        "t": torch.tensor([1, 7, 19]), "noise": draw(3, 1, 8, 8).float(),
        "dropped": torch.zeros(3, 2, dtype=torch.bool),
    }  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    _, parts = GenerativeObjective(Schedule(20), settings.contrastive, model.middle)(model, **batch)
    assert "contrastive" in parts
    _, features = model(batch["x"][:, 0], batch["t"], None, (model.middle,), True)
    name = {"supervised": "projection", "auxiliary": "auxiliary"}[form]
    loss, _ = label_term(settings.contrastive, features[model.middle], {name: features[f"side.{name}"]}, Y[:3], Y[:0])
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.side.parameters())
    first = next(model.stem.parameters() if backbone == "unet" else model.embed.parameters())  # type: ignore[union-attr, operator]
    assert first.grad is not None and first.grad.abs().max() > 0
    assert model.labels.weight.grad is not None and torch.equal(
        model.labels.weight.grad[:3], torch.zeros_like(model.labels.weight.grad[:3])
    )


@pytest.mark.parametrize("changes", [
    {"contrastive": {"form": "auxiliary"}},
    {"contrastive": {"form": "supervised", "horizon": 0.5}},
    {"contrastive": {"distance": "centred", "pairs": "all", "margin": 1.0}},
    {"contrastive": {"weight": 0.0}, "align": {"weight": 0.5, "block": "middle", "size": 32, "stride": 32}},
    {"contrastive": {"weight": 0.0}, "align": {"weight": 0.5, "block": "up1", "size": 32}},
])  # fmt: skip
def test_side_heads_are_trained_and_left_behind(changes: dict[str, Any], tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "store")
    settings = tiny_experiment(diffusion=changes)
    teacher = CnnTeacher(data, settings) if "align" in changes else None
    train_diffusion(data, settings, tmp_path / "out", teacher=teacher)
    tensors, _ = load_weights(tmp_path / "out" / "model.safetensors")
    plain = build_denoiser(settings.diffusion, 1, 3).state_dict()
    assert set(tensors) == set(plain)
    assert ('"align"' if teacher else '"contrastive"') in (tmp_path / "out" / "log.jsonl").read_text()


@pytest.mark.parametrize(("changes", "block"), [
    ({"image_size": 64, "unet": {"patch": 2, "widths": (8, 8, 8, 8)}}, "up3"),  # maps of 32, 16, 8 and 4
    ({"image_size": 32, "unet": {"patch": 2, "widths": (8, 8, 8, 8)}}, "up2"),
    ({"image_size": 8, "unet": {"widths": (8, 8)}, "align": {"weight": 1.0, "size": 256}}, "up1"),
    ({"image_size": 8, "align": {"weight": 1.0, "block": "down1"}}, "down1"),
    ({"image_size": 16, "backbone": "uvit", "uvit": {"patch": 4, "width": 8, "depth": 4, "heads": 2}}, "block2"),
])  # fmt: skip
def test_the_aligned_block_has_a_map_like_the_teachers(changes: dict[str, Any], block: str) -> None:
    config = tiny_experiment(diffusion={"align": {"weight": 1.0}, **changes}).diffusion
    model = build_denoiser(config, 1, 3)
    add_side_heads(model, config, 12, seed=0)
    assert model.aligned == block
    x, t = torch.zeros(2, 1, config.image_size, config.image_size), torch.zeros(2, dtype=torch.long)
    _, features = model.train()(x, t, None, [block])
    assert features["side.align"].shape[1] == 12


def test_a_teacher_gives_standardised_maps_of_the_stride_asked_for(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "store")
    for stride, side in ((8, 8), (16, 4), (32, 2)):
        align = {"weight": 1.0, "size": 64, "stride": stride}
        teacher = CnnTeacher(data, tiny_experiment(diffusion={"align": align}))
        maps = teacher(np.arange(len(data.indices("train"))), np.zeros(len(data.indices("train")), bool))
        assert maps.shape[1:] == (teacher.width, side, side)
        moving = maps.std((0, 2, 3)) > 0.5  # a channel that hardly moves is left as it is
        assert moving.float().mean() > 0.5 and maps.mean((0, 2, 3)).abs().max() < 0.05
        torch.testing.assert_close(maps.std((0, 2, 3))[moving], torch.ones(int(moving.sum())), atol=0.02, rtol=0)


def test_a_teacher_gives_the_same_features_held_or_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path / "store")
    align = {"weight": 1.0, "size": 32}
    long, short = (tiny_experiment(diffusion={"align": align, "optimizer": {"steps": steps}}) for steps in (9, 2))
    torch.manual_seed(0)
    held = make_teacher(data, long)
    torch.manual_seed(0)  # random weights
    live = make_teacher(data, short)  # two steps ask for fewer maps than there are
    assert held is not None and live is not None
    positions, flipped = np.array([3, 0, 3]), np.array([False, True, True])
    a, b = held(positions, flipped), live(positions, flipped)
    assert held.held is not None and live.held is None and a.shape == b.shape == (3, held.width, *a.shape[2:])
    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)  # held in float16
    assert not torch.equal(a[0], a[2])
    monkeypatch.setattr("dcube.features.teacher.HELD_GB", 0)
    bounded = make_teacher(data, long)
    assert bounded is not None and bounded.held is None, "they do not fit"


def test_what_cannot_be_combined_is_refused() -> None:
    for wrong in ({"label": "true", "form": "auxiliary"}, {"label": "true", "horizon": 0.5}):
        with pytest.raises(ValidationError, match="label true"):
            ContrastiveConfig.model_validate(wrong)
    with pytest.raises(ValidationError, match="up9: this network has down1, .*, up1"):
        DiffusionConfig(align=AlignConfig(block="up9"))
