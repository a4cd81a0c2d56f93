"""Step 1 as a whole: the batch of a step, and what a training leaves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcube.data.dataset import ImageData
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
