"""Step 2 as a whole: batches, the choice by validation, and prediction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from dcube.classifier.batches import ClassifierBatches
from dcube.classifier.model import Predictor, load_predictor
from dcube.classifier.reader import joined
from dcube.classifier.train import Validation, train_classifier
from dcube.data.dataset import ImageData
from dcube.features.frozen import FrozenFeatures
from dcube.training.log import read_log
from dcube.training.state import load_weights
from tiny import tiny_diffusion, tiny_experiment

BLOCKS = [1, 3]


@pytest.fixture(
    scope="module", params=[
        ("paper", 0, (), "cnn"), ("late", 0, (), "cnn"), ("late", 16, (), "cnn"), ("late", 16, ("cnn", "step1"), "cnn"),
        ("late", 0, (), "step1"), ("paper", 16, ("step1",), "step1"),
    ],
    ids=["paper", "late", "two readers", "all readers", "own network", "own network and readers"],
)  # fmt: skip
def trained(request: pytest.FixtureRequest, data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished step 2; live features in validation, so that they are those of prediction."""
    head, second, covariances, sub = request.param
    changes = {"head": head, "second_reader": second, "covariance_readers": covariances, "sub_network": sub}
    experiment = tiny_experiment(features={"cache_gb": 0}, classifier=changes)
    directory = tmp_path_factory.mktemp("step2")
    train_classifier(data, experiment, tiny_diffusion(), BLOCKS, directory)
    return directory


def predictor_of(directory: Path) -> Predictor:
    return load_predictor(directory / "model.safetensors", tiny_diffusion())


def predict(predictor: Predictor, data: ImageData, rows: np.ndarray) -> np.ndarray:
    return predictor(data.images(rows, 8), data.images(rows, 32)).numpy()


def test_the_best_ema_weights_by_validation_are_kept(trained: Path, data: ImageData) -> None:
    rows = [row for row in read_log(trained / "log.jsonl") if row.get("event") == "validation"]
    assert len(rows) >= 4
    best = max(rows, key=lambda row: (row["macro_f1"], -row["cross_entropy"], -row["step"]))
    _, metadata = load_weights(trained / "model.safetensors")
    assert metadata["step"] == best["step"]
    val = data.indices("val")
    probabilities = predict(predictor_of(trained), data, val)
    f1 = f1_score(data.labels[val], probabilities.argmax(1), labels=[0, 1, 2], average="macro", zero_division=0)
    assert abs(f1 - best["macro_f1"]) < 1e-12
    chosen = probabilities[np.arange(len(val)), data.labels[val]]
    assert abs(-np.log(chosen).mean() - best["cross_entropy"]) < 1e-5
    files = {path.name for path in trained.iterdir() if path.is_file()}
    readers = {f"{name}.safetensors" for name in predictor_of(trained).model.readers}
    assert files == {"log.jsonl", "model.safetensors", "runtime.json"} | readers


def test_weights_are_replaced_only_by_better_ones(data: ImageData, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By macro-F1, and by cross-entropy where that is equal; never by the later step."""
    experiment, labels = tiny_experiment(), data.labels[data.indices("val")]
    frozen = FrozenFeatures(tiny_diffusion(), BLOCKS, "clean", 4)
    run.mkdir()
    validation, extra, kept = Validation(data, experiment, frozen, run, {}), {}, []
    right, wrong = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]
    shares = [0.3, 0.8, 0.2, 0.9, 0.85]  # of the right answer: macro-F1 0, 1, 0, 1 (surer), 1 (less sure)
    for step, share in enumerate(shares):
        monkeypatch.setattr(validation, "probabilities", lambda ema, s=share: s * right + (1 - s) * wrong)
        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, step)
        row = validation(step, model, extra)
        assert row["macro_f1"] == float(share > 0.5)
        tensors, metadata = load_weights(run / "best.safetensors")
        kept.append((extra["best"]["step"], metadata["step"], tensors["weight"].item()))
    assert kept == [(step, step, step) for step in (0, 1, 1, 3, 3)]


def test_repeating_a_finished_training_changes_nothing(trained: Path, data: ImageData) -> None:
    """Also where the process was killed between the last file and the note that the stage is done."""
    before = load_weights(trained / "model.safetensors")
    changed = "head", "second_reader", "covariance_readers", "sub_network"
    changes = {name: value for name, value in before[1]["classifier"].items() if name in changed}
    experiment = tiny_experiment(features={"cache_gb": 0}, classifier=changes)
    _, result = train_classifier(data, experiment, tiny_diffusion(), BLOCKS, trained)
    after = load_weights(trained / "model.safetensors")
    assert result.finished and before[1] == after[1]
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_an_image_alone_and_in_a_batch_of_17(
    trained: Path, data: ImageData, dtype: torch.dtype, tolerance: float
) -> None:
    predictor = predictor_of(trained)
    predictor.model.to(dtype)
    predictor.frozen.diffusion.model.to(dtype)
    small, large = (data.images(np.arange(17), size).to(dtype) for size in (8, 32))
    together = predictor(small, large)
    assert together.dtype == dtype and together.std(dim=0).min() > 1e-4
    torch.testing.assert_close(together.sum(1), torch.ones(17, dtype=dtype))
    for i in range(17):
        alone = predictor(small[i : i + 1], large[i : i + 1])[0]
        assert (alone - together[i]).abs().max() <= tolerance


def test_prediction_is_the_mean_over_the_fixed_timesteps(trained: Path, data: ImageData) -> None:
    predictor = predictor_of(trained)
    small, large = (data.images(np.arange(4), size) for size in (8, 32))
    each, seen = [], {"cnn": large, "step1": small}[predictor.config.sub_network]
    for t in (1, 5):
        with torch.inference_mode():
            each.append(predictor.model(seen, predictor.frozen(small, torch.full((4,), t))).softmax(1))
    maps = predictor.whole(small) if predictor.whole else ()
    readers = [reader(large, maps) for reader in predictor.model.readers.values()]
    expected = joined((each[0] + each[1]) / 2, *readers)
    torch.testing.assert_close(predictor(small, large), expected)
    assert torch.equal(predictor(small, large), predictor(small, large))


def test_without_validation_the_last_weights_are_kept(data: ImageData, run: Path) -> None:
    everything = ImageData(data.store, np.where(data.splits == "val", "train", data.splits))
    _, result = train_classifier(everything, tiny_experiment(), tiny_diffusion(), BLOCKS, run)
    tensors, _ = load_weights(run / "model.safetensors")
    assert result.step == 12 and "best" not in result.extra
    assert all(torch.equal(tensors[name], tensor) for name, tensor in result.model.state_dict().items())


def test_a_deadline_leaves_a_usable_classifier(data: ImageData, run: Path) -> None:
    predictor, result = train_classifier(data, tiny_experiment(), tiny_diffusion(), BLOCKS, run, deadline=0.0)
    assert not result.finished
    assert np.isfinite(predict(predictor, data, np.arange(3))).all()
    predictor, result = train_classifier(data, tiny_experiment(), tiny_diffusion(), BLOCKS, run)
    assert result.finished and predictor.metadata["step"] > 0


def batches_of(data: ImageData, run: Path, changes: dict[str, Any] | None = None) -> ClassifierBatches:
    run.mkdir(exist_ok=True)
    experiment = tiny_experiment(**changes or {})
    frozen = FrozenFeatures(tiny_diffusion(), BLOCKS, experiment.features.input, experiment.classifier.grid)
    return ClassifierBatches(data, experiment, frozen, run)


def test_a_batch_holds_the_same_view_of_image_and_features(data: ImageData, run: Path) -> None:
    """Labels, both sizes, the flip and the cached maps belong together; `mirror` is the other view."""
    batches = batches_of(data, run)
    assert batches.cache is not None
    flips = 0
    for step in range(4):
        batch = batches(step)
        rows = batches.indices[batches.order.batch(step)]
        assert np.array_equal(batch["y"].numpy(), data.labels[rows])
        for name, size in (("large", 32), ("small", 8)):
            for image, plain, flipped in zip(batch[name], data.images(rows, size), batch["flipped"], strict=True):
                assert torch.equal(image, plain.flip(-1) if flipped else plain)
        for prefix, small in (("map", batch["small"]), ("mirror", batch["small"].flip(-1))):
            for i, exact in enumerate(batches.frozen(small, batch["t"])):
                torch.testing.assert_close(batch[f"{prefix}{i}"].float(), exact.clone(), rtol=1e-3, atol=1e-3)
        assert set(batch["t"].tolist()) <= {2, 9}
        flips += int(batch["flipped"].sum())
    assert 0 < flips < 24


def test_batches_are_functions_of_the_step(data: ImageData, run: Path) -> None:
    one, other = (batches_of(data, run, {"features": {"timesteps": None}}) for _ in range(2))
    one(0), one(1)
    expected, found = one(2), other(2)
    assert "map0" not in expected and expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert not torch.equal(expected["cycle_noise"], one(3)["cycle_noise"])


def test_no_flip_where_laterality_matters(data: ImageData, run: Path) -> None:
    changes = {"data": {"horizontal_flip": False}, "classifier": {"lambda_consistency": 0}}
    batches = batches_of(data, run, changes)
    for step in range(3):
        batch = batches(step)
        assert not batch["flipped"].any() and "mirror0" not in batch
    assert batches.cache is not None and batches.cache.values.shape[1] == 1


@pytest.mark.parametrize(("balance", "equal"), [("sampler", True), ("weights", False), ("none", False)])
def test_balance(data: ImageData, run: Path, balance: str, equal: bool) -> None:
    batches = batches_of(data, run, {"data": {"balance": balance}, "features": {"timesteps": None}})
    counts = np.bincount(np.concatenate([batches(step)["y"] for step in range(6)]), minlength=3)
    assert (counts.max() == counts.min()) == equal


def test_a_cache_that_is_too_large_is_not_made(data: ImageData, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batches = batches_of(data, run, {"features": {"cache_gb": 1e-6}})
    assert batches.cache is None and "map0" not in batches(0)
    assert "live" in capsys.readouterr().out
