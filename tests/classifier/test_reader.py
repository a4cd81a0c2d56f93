"""Readers beside the network: frozen linear probes whose answers are joined with the network's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dcube.classifier.model import DCubeClassifier, Predictor, load_predictor, predict_readers
from dcube.classifier.reader import Reader, SecondReader, WholeMaps, joined, make_readers, read, reader_features
from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from dcube.evaluation.linear import linear_probe
from dcube.features.covariance import evened
from dcube.features.subnet import SubNetwork
from dcube.stages import check_models, with_floors
from dcube.training.state import load_weights, save_weights
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
    train, val = data.indices("train"), data.indices("val")
    reader, about = readers[name], told[name]
    assert isinstance(reader, Reader)
    assert about["images"] == len(train) and isinstance(about["inside"], float) and 0 <= about["inside"] <= 1
    parts = [reader_features(reader, data, rows, CONFIG, whole(diffusion)) for rows in (train, val)]
    scale = evened(parts[0], reader.widths)
    groups = np.array(data.groups)[train]
    expected = linear_probe(parts[0] * scale, data.labels[train], groups, parts[1] * scale, classes=3)
    answer = read(readers, data, val, CONFIG, whole(diffusion))[name]
    assert (answer.argmax(1) == expected.argmax(1)).mean() >= 0.75  # the order of the images changes PCA and folds
    np.testing.assert_allclose(answer.sum(1), 1, atol=1e-5)


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
    """Other labels everywhere else change nothing."""
    readers, _ = made(data, run, diffusion)
    labels = data.labels.copy()
    others = np.setdiff1d(np.arange(len(labels)), data.indices("train"))
    data.labels[others] = (labels[others] + 1) % 3
    try:
        assert same(made(data, tmp_path, diffusion)[0], readers)
    finally:
        data.labels[:] = labels


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
    assert list(alone) == NAMES
    found = with_floors(data, rows, alone["second_reader"], EXPERIMENT, predictor)
    assert list(found) == ["", "majority", "statistics", "pixels", *NAMES]
    assert all(np.array_equal(found[name], alone[name]) for name in NAMES)
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
    """It lay under another name."""
    predictor, _ = train_classifier(data, tiny_experiment(classifier={"second_reader": 16}), diffusion, [1], tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, metadata = load_weights(file)
    old = nn.Module()
    for name, tensor in tensors.items():
        part = old
        *path, last = name.replace("readers.second_reader.", "reader.").split(".")
        for step in path:
            if not hasattr(part, step):
                part.add_module(step, nn.Module())
            part = getattr(part, step)
        part.register_buffer(last, tensor)
    del metadata["classifier"]["covariance_readers"]
    save_weights(file, old, metadata)
    assert any(name.startswith("reader.") for name in load_weights(file)[0])
    rows = data.indices("val")
    small, large = data.images(rows, 8), data.images(rows, 32)
    torch.testing.assert_close(load_predictor(file, diffusion)(small, large), predictor(small, large))
