"""Readers beside the network: frozen linear probes whose answers are joined with the network's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dcube.checks import check_models
from dcube.classifier.model import DCubeClassifier, Predictor, load_predictor, predict_readers
from dcube.classifier.reader import (
    Reader,
    SecondReader,
    WholeMaps,
    fitted_rows,
    joined,
    make_readers,
    read,
    reader_features,
)
from dcube.classifier.train import ClassifierLoss, train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from dcube.evaluation.linear import tuned_probe
from dcube.features.covariance import evened
from dcube.features.subnet import SubNetwork
from dcube.stages import with_floors
from dcube.training.state import load_weights
from tiny import tiny_diffusion, tiny_experiment

EXPERIMENT = tiny_experiment(classifier={"second_reader": 16, "covariance_readers": ["cnn", "step1"]})
CONFIG = EXPERIMENT.classifier
NAMES = ["second_reader", "cnn_covariances", "step1_covariances"]


@pytest.fixture(scope="module")
def diffusion() -> Diffusion:
    return tiny_diffusion()


def made(
    data: ImageData, directory: Path, diffusion: Diffusion, experiment: Experiment = EXPERIMENT
) -> tuple[nn.ModuleDict, dict[str, dict[str, object]]]:
    return make_readers(data, experiment, directory, diffusion)


def whole(diffusion: Diffusion) -> WholeMaps:
    return WholeMaps(diffusion, EXPERIMENT.features)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_linear_probe_of_what_is_frozen_fitted_on_the_training_split(
    data: ImageData, run: Path, diffusion: Diffusion, name: str
) -> None:
    readers, told = made(data, run, diffusion)
    assert list(readers) == NAMES and list(told) == NAMES
    reader, about = readers[name], told[name]
    assert isinstance(reader, Reader)
    train, val = fitted_rows(reader, data, EXPERIMENT.seed), data.indices("val")
    assert sorted(train) == data.indices("train").tolist() and about["images"] == len(train)
    parts = [reader_features(reader, data, rows, CONFIG, whole(diffusion)) for rows in (train, val)]
    scale, groups = evened(parts[0], reader.widths), np.array(data.groups)[train]
    labels = data.labels[train]
    expected, inside = tuned_probe(parts[0] * scale, labels, groups, parts[1] * scale, classes=3)
    assert about["inside"] == pytest.approx(inside)
    answer = read(readers, data, val, CONFIG, whole(diffusion))[name]
    np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_they_are_read_where_they_were_left_unless_something_changed(
    data: ImageData, run: Path, tmp_path: Path, diffusion: Diffusion
) -> None:
    first, about = made(data, run, diffusion)
    again, told = made(data, run, diffusion)
    assert told == about and same(first, again)
    assert same(first, made(data, tmp_path, diffusion)[0])
    seeded = EXPERIMENT.model_copy(update={"seed": 5})
    other, told = made(data, run, diffusion, seeded)
    assert all(told[name]["inputs"] != about[name]["inputs"] for name in NAMES) and not same(first, other)
    made(data, run, diffusion)
    with torch.no_grad():
        another = tiny_diffusion()
        next(iter(another.model.parameters())).add_(0.1)
    _, told = made(data, run, another)  # only what reads step 1 is fitted anew
    assert [told[name]["inputs"] == about[name]["inputs"] for name in NAMES] == [True, True, False]


def same(one: nn.Module, other: nn.Module) -> bool:
    held = other.state_dict()
    return all(torch.equal(tensor, held[name]) for name, tensor in one.state_dict().items())


def test_only_the_training_split_is_read(data: ImageData, run: Path, tmp_path: Path, diffusion: Diffusion) -> None:
    """Other labels everywhere else change nothing, nor do other pixels."""
    readers, _ = made(data, run, diffusion)
    labels, images = data.labels.copy(), data.images
    others = np.setdiff1d(np.arange(len(labels)), data.indices("train"))

    def altered(rows: np.ndarray, size: int) -> torch.Tensor:
        found = images(rows, size)
        found[np.isin(rows, others)] = 0.5
        return found

    data.labels[others] = (labels[others] + 1) % 3
    object.__setattr__(data, "images", altered)
    try:
        assert same(made(data, tmp_path, diffusion)[0], readers)
    finally:
        data.labels[:] = labels
        object.__delattr__(data, "images")


def test_answers_are_joined_by_their_geometric_mean() -> None:
    first = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    second = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]])
    mean = (first.clamp(min=1e-6) * second).sqrt()
    torch.testing.assert_close(joined(first, second.log()), mean / mean.sum(1, keepdim=True))
    mean = (first.clamp(min=1e-6) * second * second) ** (1 / 3)
    torch.testing.assert_close(joined(first, second.log(), second.log()), mean / mean.sum(1, keepdim=True))
    assert joined(first) is first
    never = torch.tensor([[0.0, -torch.inf, -torch.inf]])  # a class that the training set did not hold
    assert joined(first[:1], never).isfinite().all() and joined(first[:1], never).argmax() == 0


def test_layers_behind_its_map_are_let_go_and_all_stay_frozen(
    diffusion: Diffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = DCubeClassifier(CONFIG, 3, [], whole=whole(diffusion).channels).train()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.readers["second_reader"], model.subnet)]
    assert 0 < sizes[0] < sizes[1]
    assert not any(p.requires_grad for p in model.readers.parameters())
    assert not any(m.training for reader in model.readers.values() for m in reader.modules())
    assert not DCubeClassifier(tiny_experiment().classifier, 3, []).readers
    with pytest.raises(InputError, match="no map of stride 7"):
        SecondReader(CONFIG.model_copy(update={"second_reader": 7}), 3)
    with pytest.raises(InputError, match="no map of stride 7"):  # before anything is trained
        check_models(tiny_experiment(classifier={"second_reader": 7}))
    monkeypatch.setattr(SubNetwork, "_info", lambda network: [])
    with pytest.raises(InputError, match="no maps of stride 4 or more"):
        check_models(tiny_experiment(classifier={"covariance_readers": ["cnn"]}))


def test_they_stand_among_the_floors(data: ImageData, tmp_path: Path, diffusion: Diffusion) -> None:
    predictor, _ = train_classifier(data, EXPERIMENT, diffusion, [1, 3], tmp_path)
    rows = data.indices("val")
    alone = predict_readers(predictor, data, rows)
    found = with_floors(data, rows, alone["second_reader"], EXPERIMENT, predictor)
    assert list(found) == ["", "majority", "statistics", "pixels", *NAMES]
    fresh = read(made(data, tmp_path, diffusion)[0], data, rows, CONFIG, whole(diffusion))
    for name in NAMES:
        np.testing.assert_allclose(found[name], fresh[name], atol=1e-6)
    without = tiny_experiment(evaluation={"floors": False})
    assert list(with_floors(data, rows, alone["second_reader"], without, predictor)) == [""]


def test_training_leaves_them_as_they_were_fitted_and_the_file_holds_them(
    data: ImageData, tmp_path: Path, diffusion: Diffusion
) -> None:
    predictor, _ = train_classifier(data, EXPERIMENT, diffusion, [1, 3], tmp_path)
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    fresh, _ = made(data, tmp_path / "fresh", diffusion)
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensors[f"readers.{name}"], tensor), name
    rows = data.indices("val")
    small, large = data.images(rows, 8), data.images(rows, 32)
    loaded = load_predictor(tmp_path / "model.safetensors", diffusion)
    torch.testing.assert_close(loaded(small, large), predictor(small, large))
    alone = [torch.from_numpy(p).float().log() for p in predict_readers(loaded, data, rows).values()]
    torch.testing.assert_close(loaded(small, large), joined(network_alone(loaded, small, large), *alone))


def network_alone(predictor: Predictor, small: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        steps = predictor.features.prediction_timesteps
        return predictor.model.answer(large, [predictor.frozen(small, torch.full((len(small),), t)) for t in steps])


def test_a_run_of_the_time_when_there_was_one_reader(data: ImageData, tmp_path: Path, diffusion: Diffusion) -> None:
    """It lay under another name: in weights, in those that were best so far, and in a checkpoint."""
    experiment = tiny_experiment(classifier={"second_reader": 16})
    stopped, whole_run = tmp_path / "stopped", tmp_path / "whole"
    predictor, _ = train_classifier(data, experiment, diffusion, [1], whole_run)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, at=7)
        train_classifier(data, experiment, diffusion, [1], stopped)
    files = [*stopped.rglob("*.safetensors"), whole_run / "model.safetensors"]
    assert {file.name for file in files} >= {"model.safetensors", "ema.safetensors", "best.safetensors"}
    for file in files:
        as_it_was_named(file)
    rows = data.indices("val")
    small, large = data.images(rows, 8), data.images(rows, 32)
    expected = predictor(small, large)
    torch.testing.assert_close(load_predictor(whole_run / "model.safetensors", diffusion)(small, large), expected)
    resumed, result = train_classifier(data, experiment, diffusion, [1], stopped)
    assert result.finished
    torch.testing.assert_close(resumed(small, large), expected)


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the loss of a step, behind a checkpoint of the step before."""
    loss = ClassifierLoss.__call__

    def call(self: ClassifierLoss, model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        if step == at:
            raise KeyboardInterrupt
        return loss(self, model, batch, step)

    patch.setattr(ClassifierLoss, "__call__", call)


def as_it_was_named(file: Path) -> None:
    with safe_open(file, "pt") as held:
        metadata = held.metadata()
    tensors = {name.replace("readers.second_reader.", "reader."): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata)
