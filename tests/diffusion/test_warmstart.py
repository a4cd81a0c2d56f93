"""`diffusion.init`: what is taken over, what is not, and that a continued training does not need it again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dcube.config import Experiment, RuntimeConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.build import build_denoiser
from dcube.diffusion.train import PairBatches, load_diffusion, train_diffusion
from dcube.diffusion.warmstart import warm_start
from dcube.errors import InputError
from dcube.training.state import checkpoints, save_weights
from tiny import CLASSES, tiny_denoiser, tiny_experiment

UVIT = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


def saved(directory: Path, classes: tuple[str, ...] = CLASSES, **changes: Any) -> Path:
    """A file with random weights of a model with these classes."""
    config = tiny_experiment(diffusion=changes).diffusion
    model = build_denoiser(config, 1, len(classes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    path = directory / "other.safetensors"
    save_weights(path, model, {"diffusion": config.model_dump(mode="json"), "classes": list(classes)})
    return path


def test_every_tensor_of_an_equal_model_is_taken(tmp_path: Path) -> None:
    path, model = saved(tmp_path), tiny_denoiser().float()
    line = warm_start(model, list(CLASSES), path)
    count = len(model.state_dict())
    assert f"{count} of {count} tensors (100% of the values)" in line
    other = load_diffusion_tensors(path)
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


def load_diffusion_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_classes_are_found_by_name_and_new_ones_begin_at_the_null_label(tmp_path: Path) -> None:
    path = saved(tmp_path, ("normal", "oedema", "benign"))
    model = tiny_denoiser().float()
    drawn = model.labels.weight.detach().clone()
    warm_start(model, list(CLASSES), path)  # benign, malignant, normal
    table, given = model.labels.weight.detach(), load_diffusion_tensors(path)["labels.weight"]
    assert torch.equal(table[0], given[2]) and torch.equal(table[2], given[0]) and torch.equal(table[3], given[3])
    torch.testing.assert_close(table[1], given[3] + drawn[1])


def test_only_what_fits_is_taken(tmp_path: Path) -> None:
    """A deeper level more: the levels above it are the same, its neighbours are not."""
    path = saved(tmp_path)
    model = tiny_denoiser(unet={"widths": (8, 16, 16), "groups": 4}).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    line = warm_start(model, list(CLASSES), path)
    after, given = model.state_dict(), load_diffusion_tensors(path)
    taken = [name for name in after if torch.equal(after[name], given.get(name, before[name] + 1))]
    kept = [name for name in after if torch.equal(after[name], before[name])]
    assert "stem.weight" in taken and "down.2.conv1.weight" in kept and "labels.weight" in taken
    assert set(taken) | set(kept) == set(after) and f"{len(taken)} of {len(after)} tensors" in line


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "uvit", "uvit": UVIT}, "No weights of diffusion.init"),
        ({"unet": {"widths": (12, 20), "groups": 4}}, "No weights of diffusion.init"),
    ],
)
def test_where_nothing_fits_it_is_an_error(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        warm_start(tiny_denoiser().float(), list(CLASSES), saved(tmp_path, **changes))


def test_a_file_that_is_missing_or_no_step_1_is_an_error(tmp_path: Path) -> None:
    model = tiny_denoiser().float()
    with pytest.raises(InputError, match="is not a file"):
        warm_start(model, [], tmp_path / "nothing.safetensors")
    save_weights(tmp_path / "cnn.safetensors", torch.nn.Linear(2, 2), {"classifier": {}})
    with pytest.raises(InputError, match="does not hold a step 1"):
        warm_start(model, [], tmp_path / "cnn.safetensors")


def settings(init: Path | None, steps: int, **changes: Any) -> Experiment:
    given = {"init": str(init)} if init else {}
    return tiny_experiment(diffusion={"optimizer": {"steps": steps}, "sample_every": 100.0, **given, **changes})


def test_pre_training_without_labels_and_fine_tuning_with_them(tmp_path: Path, data: ImageData, capsys: Any) -> None:
    """The pre-trained model knows no class; what it draws shows none; the other training begins where it ended."""
    made, _ = train_diffusion(data, settings(None, 20), tmp_path / "pre", unconditional=True)
    path = tmp_path / "pre" / "model.safetensors"
    assert made.classes == [] and load_diffusion(path).model.null_label == 0
    assert made.sample(torch.zeros(2, dtype=torch.long), seed=0).shape == (2, 1, 8, 8)
    assert (tmp_path / "pre" / "samples").is_dir()
    capsys.readouterr()
    tuned, _ = train_diffusion(data, settings(path, 1, optimizer={"steps": 1, "lr": 1e-12}), tmp_path / "fine")
    assert "(100% of the values)" in capsys.readouterr().out
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 12])
    torch.testing.assert_close(tuned.model(x, t)[0], made.model(x, t)[0], rtol=0, atol=1e-4)
    assert tuned.classes == data.classes


def test_batches_without_labels(data: ImageData) -> None:
    batches = PairBatches(data, tiny_experiment().diffusion, seed=0, unconditional=True)
    seen = torch.cat([batches(step)["y"] for step in range(5)])
    assert not seen.any()  # 0 is the null label of a model without classes
    x = torch.cat([batches(step)["x"] for step in range(5)])
    assert sum(torch.equal(a, b) for a, b in x) < len(x) / 2  # partners are other images


def test_an_interrupted_training_goes_on_without_the_file(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With images that grow, augmentation and another prediction: all are functions of the step."""
    changes = {"growth": [[0.5, 8]], "image_size": 16, "augmentation": {"probability": 0.3}, "prediction": "v"}
    path, batch = saved(tmp_path), PairBatches.__call__
    experiment = settings(path, 20, **changes)
    experiment = experiment.model_copy(update={"runtime": RuntimeConfig(checkpoint_seconds=0, threads=1)})
    whole, _ = train_diffusion(data, experiment, tmp_path / "whole")

    def killed(self: PairBatches, step: int) -> dict[str, torch.Tensor]:
        if step == 8:
            raise OSError("the power is gone")
        return batch(self, step)

    monkeypatch.setattr(PairBatches, "__call__", killed)
    with pytest.raises(OSError, match="power"):
        train_diffusion(data, experiment, tmp_path / "parts")
    assert [folder.name for folder in checkpoints(tmp_path / "parts" / "checkpoint")][-1] > "step-00000000"
    monkeypatch.undo()
    path.unlink()
    again, _ = train_diffusion(data, experiment, tmp_path / "parts")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
