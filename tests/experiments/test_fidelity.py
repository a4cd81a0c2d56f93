"""The comparison of samplers: what it draws, keeps and says."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcube.diffusion.train import Diffusion
from dcube.evaluation.frechet import frechet_distance
from dcube.experiments import fidelity
from dcube.experiments.fidelity import compare_samplers, draw, pooled_features
from tiny import tiny_diffusion, tiny_experiment


class Blocks(nn.Module):
    """In place of the CNN: three means of a picture, and one of its squares."""

    source = "a test"

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bands = torch.stack([x[:, 0, 70 * i : 70 * (i + 1)].mean((1, 2)) for i in range(3)], dim=1)
        return torch.cat([bands, x.square().mean((1, 2, 3))[:, None]], dim=1)[:, :, None, None]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "SubNetwork", Blocks)
    monkeypatch.setattr(fidelity, "CHUNK", 5)


@pytest.fixture
def diffusion() -> Diffusion:
    return tiny_diffusion(config=tiny_experiment(diffusion={"sample_dtype": "fp32"}).diffusion)


def test_distances_are_those_of_the_images(diffusion: Diffusion, tmp_path: Path) -> None:
    found = compare_samplers(diffusion, 12, (3, 15), tmp_path)
    labels = torch.arange(12) % 3

    def features(seed: int, **changes: Any) -> np.ndarray:
        config = diffusion.config.model_copy(update=changes)
        images = dataclasses.replace(diffusion, config=config).sample(labels, seed)
        return pooled_features(Blocks(), images.half().numpy())  # type: ignore[arg-type]

    a, b = features(0, sampler="ddpm"), features(1, sampler="ddpm")
    assert np.isclose(found["a_to_b"], frechet_distance(a, b), rtol=1e-3) and found["a_to_b"] > 0
    assert found["bound"] == 1.05 * found["a_to_b"] and list(found["fast"]) == ["3", "15"]
    for steps in (3, 15):
        row, drawn = found["fast"][str(steps)], features(0, sampler="sde", sample_steps=steps)
        assert np.isclose(row["to_a"], frechet_distance(drawn, a), rtol=1e-3)
        assert np.isclose(row["to_b"], frechet_distance(drawn, b), rtol=1e-3)
        assert row["within"] == (row["to_a"] <= found["bound"])


def test_the_slow_sampler_is_at_no_distance_from_itself(diffusion: Diffusion, tmp_path: Path) -> None:
    row = compare_samplers(diffusion, 12, (3,), tmp_path, sampler="ddpm")["fast"]["3"]
    assert row["to_a"] < 1e-6 and row["within"] and row["to_b"] > 1e-4


def test_what_is_drawn_is_not_drawn_again(
    diffusion: Diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = draw(diffusion, 12, {"sampler": "sde"}, 0, tmp_path)
    assert first.shape == (12, 1, 8, 8) and first.dtype == np.float16
    files = sorted(tmp_path.rglob("*.npy"))
    assert [file.name for file in files] == ["000000-5.npy", "000005-5.npy", "000010-2.npy"]
    files[1].unlink()  # as if interrupted
    drawn, sample = [], Diffusion.sample

    def watched(self: Diffusion, labels: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        drawn.append((named["first"], labels.tolist()))
        return sample(self, labels, *more, **named)

    monkeypatch.setattr(Diffusion, "sample", watched)
    assert np.array_equal(draw(diffusion, 12, {"sampler": "sde"}, 0, tmp_path), first)
    assert drawn == [(5, [2, 0, 1, 2, 0])]


def test_other_images_have_another_folder(diffusion: Diffusion, tmp_path: Path) -> None:
    draw(diffusion, 2, {"sampler": "sde"}, 0, tmp_path)
    draw(diffusion, 2, {"sampler": "sde"}, 1, tmp_path)
    draw(diffusion, 2, {"sampler": "sde", "sample_steps": 7}, 0, tmp_path)
    draw(tiny_diffusion(seed=5), 2, {"sampler": "sde"}, 0, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_features_of_the_real_extractor() -> None:
    from dcube.features.subnet import SubNetwork

    network = SubNetwork("test_efficientnet", "none").eval()
    images = np.random.default_rng(0).random((40, 1, 16, 16)).astype(np.float16)
    made = pooled_features(network, images)
    assert made.shape == (40, network.width) and made.dtype == np.float64
    assert np.allclose(made[33:35], pooled_features(network, images[33:35]), atol=1e-5)
