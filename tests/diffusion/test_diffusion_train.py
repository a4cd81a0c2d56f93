"""Step 1 as a whole: the batch of a step, and what a training leaves."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dcube.data.dataset import ImageData
from dcube.diffusion.augment import apply_parameters
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import PairBatches, load_diffusion, train_diffusion
from dcube.training.log import read_log
from tiny import tiny_data, tiny_experiment


def test_a_batch_of_pairs(data: ImageData) -> None:
    config = tiny_experiment(diffusion={"label_dropout": 0.4}).diffusion
    batches, train = PairBatches(data, config, seed=3), data.indices("train")
    pictures = data.images(train, 8) * 2 - 1
    dropped = same = 0.0
    for step in range(40):
        batch = batches(step)
        assert batch["x"].shape == (6, 2, 1, 8, 8) and batch["noise"].shape == (6, 1, 8, 8)
        assert torch.equal(batch["same"], batch["y"][:, 0] == batch["y"][:, 1])
        for image, label in zip(batch["x"].flatten(0, 1), batch["y"].flatten(), strict=True):
            (which,) = np.flatnonzero((pictures == image).flatten(1).all(1))
            assert data.labels[train[which]] == label
        assert batch["t"].min() >= 0 and batch["t"].max() < 20
        dropped, same = dropped + batch["dropped"].float().mean().item(), same + batch["same"].float().mean().item()
    assert 0.33 < dropped / 40 < 0.47 and 0.4 < same / 40 < 0.6


def test_batches_are_functions_of_seed_and_step(data: ImageData) -> None:
    config = tiny_experiment(diffusion={"augment": True}).diffusion
    one, other = PairBatches(data, config, 3), PairBatches(data, config, 3)
    one(0), one(1)
    expected, found = one(2), other(2)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not torch.equal(expected["noise"], PairBatches(data, config, 4)(2)["noise"])


def test_images_grow_with_the_steps(data: ImageData) -> None:
    changes = {"image_size": 32, "growth": [[0.25, 8], [0.5, 16]], "optimizer": {"steps": 20}}
    batches = PairBatches(data, tiny_experiment(diffusion=changes).diffusion, seed=3)
    sizes = [batches(step)["x"].shape[-1] for step in range(20)]
    assert sizes == [8] * 5 + [16] * 5 + [32] * 10
    assert all(batches(step)["noise"].shape[-1] == batches(step)["x"].shape[-1] for step in (0, 7, 19))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.5, 0.5)])
def test_logit_normal_timesteps(data: ImageData, mean: float, deviation: float) -> None:
    """Esser et al. 2024: logit(t / T) is normal, so the share of t below T / 2 is that of z below -mean / deviation."""
    changes = {"t_distribution": "logit_normal", "t_mean": mean, "t_deviation": deviation, "timesteps": 1000}
    config = tiny_experiment(diffusion=changes).diffusion
    t = PairBatches(data, config, seed=3)._timesteps(20_000, torch.Generator().manual_seed(0)).double()
    logit = torch.logit((t + 0.5) / 1000)
    assert abs(logit.mean().item() - mean) < 0.05 and abs(logit.std().item() - deviation) < 0.05
    assert t.min() >= 0 and t.max() < 1000


@pytest.mark.parametrize("mirror", [True, False])
def test_a_batch_with_augmentation(data: ImageData, mirror: bool) -> None:
    """The images are changed as told; all else of the batch is what it is without."""
    plain = PairBatches(data, tiny_experiment().diffusion, 3)
    config = tiny_experiment(diffusion={"augmentation": {"probability": 0.3}}).diffusion
    batches, mirrored = PairBatches(data, config, 3, mirror=mirror), 0.0
    for step in range(10):
        one, other = plain(step), batches(step)
        told = other.pop("augmentation").flatten(0, 1)
        expected = apply_parameters(one["x"].flatten(0, 1), told).unflatten(0, (-1, 2))
        assert torch.equal(other["x"], expected) and not torch.equal(other["x"], one["x"])
        assert all(torch.equal(one[name], other[name]) for name in one if name != "x")
        mirrored += told[:, 0].mean().item() / 10
    assert (0.3 < mirrored < 0.7) if mirror else mirrored == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": "x0", "weighting": "min_snr"}, {"prediction": "v", "schedule": "cosine", "shift": 0.5},
        {"augmentation": {"probability": 0.2}, "weighting": "p2"},
    ],
    ids=["x0", "v", "augmented"],
)  # fmt: skip
def test_every_knob_trains_and_loads(tmp_path: Path, data: ImageData, changes: dict[str, Any]) -> None:
    optimizer = {"steps": 40, "lr": 3e-3}
    settings = tiny_experiment(diffusion={"optimizer": optimizer, "sample_every": 100.0, **changes})
    made, _ = train_diffusion(data, settings, tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if "event" not in row]
    assert rows[-1]["diffusion"] < 0.9 * rows[0]["diffusion"]
    again = load_diffusion(tmp_path / "run" / "model.safetensors")
    assert again.schedule.prediction == settings.diffusion.prediction
    assert torch.equal(again.schedule.alpha_bar, Schedule.of(settings.diffusion).alpha_bar)
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(again.sample(labels, seed=0, steps=20), made.sample(labels, seed=0, steps=20))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_what_a_training_leaves(tmp_path: Path, backbone: str, channels: int) -> None:
    """Weights that rebuild themselves, every loss part in the log, a sample grid; and the loss falls."""
    data = tiny_data(tmp_path / "store", channels=channels)
    uvit = {"patch": 2, "width": 16, "depth": 2, "heads": 2}
    optimizer = {"steps": 60, "lr": 3e-3}
    settings = tiny_experiment(
        diffusion={"backbone": backbone, "uvit": uvit, "optimizer": optimizer, "sample_every": 10.0}
    )
    made, result = train_diffusion(data, settings, tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run" / "log.jsonl") if "event" not in row]
    assert {"loss", "diffusion", "contrastive", "active_share", "distance", "lr", "grad_norm"} <= set(rows[0])
    assert rows[-1]["diffusion"] < 0.9 * rows[0]["diffusion"]
    grids = [row["file"] for row in read_log(tmp_path / "run" / "log.jsonl") if row.get("event") == "samples"]
    assert grids and all((tmp_path / "run" / grid).is_file() for grid in grids)
    again = load_diffusion(tmp_path / "run" / "model.safetensors")
    assert again.config == settings.diffusion and again.classes == data.classes and again.channels == channels
    assert not again.model.training and not any(p.requires_grad for p in again.model.parameters())
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, result.model.state_dict()[name]), "the EMA weights are saved"
    images = made.sample(torch.tensor([0, 1]), seed=0)
    assert images.shape == (2, channels, 8, 8)


GROWS = """
import resource, torch
from dcube.config import DiffusionConfig
from dcube.diffusion.train import untrained
config = DiffusionConfig(backbone="unet", image_size=8, unet={"widths": [8, 16], "groups": 4})
untrained(config, 1, ["a", "b"], 0)
for _ in range(16):  # 64 MiB, given back at once: glibc takes some rounds to join the pieces
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems' memory is left to them")
def test_a_frozen_model_keeps_its_memory() -> None:
    """A process that predicts does not fetch the same memory from the kernel, page by page, for every forward."""
    told = subprocess.run([sys.executable, "-c", GROWS], check=True, capture_output=True, text=True)
    assert int(told.stdout) < 1000, "64 MiB are 16,384 pages"
