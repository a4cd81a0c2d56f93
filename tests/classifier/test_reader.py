"""The second reader: a frozen linear probe whose answer is joined with the network's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dcube.classifier.model import DCubeClassifier, load_predictor
from dcube.classifier.reader import SecondReader, joined, make_reader, reader_rows
from dcube.classifier.train import train_classifier
from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.evaluation.linear import linear_probe
from dcube.stages import check_models, with_floors
from dcube.training.state import load_weights
from tiny import tiny_diffusion, tiny_experiment

EXPERIMENT = tiny_experiment(classifier={"second_reader": 16})
CONFIG = EXPERIMENT.classifier


def test_it_is_the_linear_probe_of_the_frozen_map_fitted_on_the_training_split(data: ImageData, run: Path) -> None:
    reader, about = make_reader(data, EXPERIMENT, run)
    train, val = data.indices("train"), data.indices("val")
    assert about["images"] == len(train) and 0.5 < about["inside"] <= 1  # brightness follows the class
    features = [reader.features(data.images(rows, 32)).numpy() for rows in (train, val)]
    groups = np.array(data.groups)[train]
    expected = linear_probe(features[0], data.labels[train], groups, features[1], classes=3)
    answer = reader(data.images(val, 32)).exp().numpy()
    assert abs(answer.argmax(1) == expected.argmax(1)).mean() > 0.8  # the order of the images changes PCA and folds
    np.testing.assert_allclose(answer.sum(1), 1, atol=1e-5)


def test_it_is_read_where_it_was_left_unless_something_changed(data: ImageData, run: Path, tmp_path: Path) -> None:
    first, about = make_reader(data, EXPERIMENT, run)
    again, told = make_reader(data, EXPERIMENT, run)
    assert told == about and same(first, again)
    elsewhere, _ = make_reader(data, EXPERIMENT, tmp_path)
    assert same(first, elsewhere)
    other, told = make_reader(data, EXPERIMENT.model_copy(update={"seed": 5}), run)
    assert told["inputs"] != about["inputs"] and not same(first, other)


def same(one: SecondReader, other: SecondReader) -> bool:
    held = other.state_dict()
    return all(torch.equal(tensor, held[name]) for name, tensor in one.state_dict().items())


def test_only_the_training_split_is_read(data: ImageData, run: Path, tmp_path: Path) -> None:
    """Other labels everywhere else change nothing."""
    reader, _ = make_reader(data, EXPERIMENT, run)
    labels = data.labels.copy()
    others = np.setdiff1d(np.arange(len(labels)), data.indices("train"))
    data.labels[others] = (labels[others] + 1) % 3
    try:
        assert same(make_reader(data, EXPERIMENT, tmp_path)[0], reader)
    finally:
        data.labels[:] = labels


def test_two_answers_are_joined_by_their_geometric_mean() -> None:
    first = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    second = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]])
    mean = (first.clamp(min=1e-6) * second).sqrt()
    torch.testing.assert_close(joined(first, second.log()), mean / mean.sum(1, keepdim=True))
    never = torch.tensor([[0.0, -torch.inf, -torch.inf]])  # a class that the training set did not hold
    assert joined(first[:1], never).isfinite().all() and joined(first[:1], never).argmax() == 0


def test_layers_behind_its_map_are_let_go_and_it_stays_frozen(data: ImageData) -> None:
    torch.manual_seed(0)
    model = DCubeClassifier(CONFIG, 3, []).train()
    assert model.reader is not None
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.reader.subnet, model.subnet)]
    assert 0 < sizes[0] < sizes[1]
    assert not any(p.requires_grad for p in model.reader.parameters())
    assert not any(m.training for m in model.reader.modules())
    assert DCubeClassifier(tiny_experiment().classifier, 3, []).reader is None
    with pytest.raises(InputError, match="no map of stride 7"):
        SecondReader(CONFIG.model_copy(update={"second_reader": 7}), 3)
    with pytest.raises(InputError, match="no map of stride 7"):  # before anything is trained
        check_models(tiny_experiment(classifier={"second_reader": 7}))


def test_it_stands_among_the_floors(data: ImageData, run: Path) -> None:
    reader, _ = make_reader(data, EXPERIMENT, run)
    rows = data.indices("val")
    alone = reader_rows(reader, data, rows, 32)
    np.testing.assert_allclose(alone, reader(data.images(rows, 32)).exp().numpy(), atol=1e-6)
    found = with_floors(data, rows, alone, EXPERIMENT, reader)
    assert list(found) == ["", "majority", "statistics", "pixels", "second_reader"]
    assert np.array_equal(found["second_reader"], alone)
    assert "second_reader" not in with_floors(data, rows, alone, EXPERIMENT, None)
    without = tiny_experiment(evaluation={"floors": False})
    assert list(with_floors(data, rows, alone, without, reader)) == [""]


def test_training_leaves_it_as_it_was_fitted_and_the_file_holds_it(data: ImageData, tmp_path: Path) -> None:
    diffusion = tiny_diffusion()
    predictor, _ = train_classifier(data, EXPERIMENT, diffusion, [1, 3], tmp_path)
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    fresh, _ = make_reader(data, EXPERIMENT, tmp_path / "fresh")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensors[f"reader.{name}"], tensor), name
    rows = data.indices("val")
    small, large = data.images(rows, 8), data.images(rows, 32)
    loaded = load_predictor(tmp_path / "model.safetensors", diffusion)
    torch.testing.assert_close(loaded(small, large), predictor(small, large))
