"""Every system is trained by the same loop, on the same batches, and answers for its best weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_registry import CLASSES, NAMES, NEEDS_TRANSFORMERS, shortened

from dcube.baselines.base import Network, Stage
from dcube.baselines.registry import create
from dcube.baselines.training import SystemBatches, predict_system, system_paces, train_system
from dcube.classifier.batches import ClassifierBatches
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.evaluation.metrics import macro_f1
from dcube.features.frozen import FrozenFeatures
from dcube.training.budget import Length
from dcube.training.log import read_log
from dcube.training.state import load_weights
from phantoms import SIZE, image_data, phantoms
from tiny import tiny_diffusion, tiny_experiment


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return image_data(phantoms(tmp_path_factory.mktemp("few") / "store", 8))


def settings_at(size: int = SIZE, **optimizer: object) -> Experiment:
    return tiny_experiment(diffusion={"image_size": size}, classifier={"optimizer": optimizer})


class Plain(Network):
    """A linear layer, with a stage before its own."""

    def __init__(self, size: int = SIZE) -> None:
        layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * size**2, CLASSES))
        super().__init__(layers, (0.5,) * 3, (0.5,) * 3)

    def stages(self) -> tuple[Stage, ...]:
        return Stage("before", 0.5, self.loss), Stage("train", 0.5, self.loss)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_trains_an_epoch(name: str, few: ImageData, run: Path) -> None:
    if name in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
        pytest.importorskip("peft")
    settings = settings_at()
    system = shortened(create(name, CLASSES, few.channels, SIZE, weights="none")[0])
    before = {n: p.detach().clone() for n, p in system.named_parameters() if p.requires_grad}
    steps = -(-len(few.indices("train")) // settings.classifier.optimizer.batch_size)
    trained = train_system(system, few, settings, run, [Length(steps, looks=1)] * len(system.stages()), {})
    assert trained.steps == trained.planned == steps * len(system.stages()) and trained.seconds > 0
    assert any(not torch.equal(p, before[n]) for n, p in trained.system.named_parameters() if n in before)
    probabilities, seconds = predict_system(trained.system, few, few.indices("val"), settings)
    assert probabilities.shape == (len(few.indices("val")), CLASSES) and np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-4)
    assert seconds > 0 and (run / "model.safetensors").is_file()


def test_equal_batches_for_all(data: ImageData, tmp_path: Path) -> None:
    """The images of a step, their order and their mirroring are those of D-Cube's step 2, at the same size."""
    settings = tiny_experiment(diffusion={"image_size": 32}, features={"timesteps": None})
    theirs, ours = SystemBatches(data, settings), ClassifierBatches(
        data, settings, FrozenFeatures(tiny_diffusion(), [], "clean", 4), tmp_path
    )  # fmt: skip
    for step in range(5):
        one, other = theirs(step), ours(step)
        assert torch.equal(one["images"], other["large"]) and torch.equal(one["labels"], other["y"])
    flat = SystemBatches(data, settings.model_copy(update={"data": settings.data.model_copy(
        update={"horizontal_flip": False})}))  # fmt: skip
    assert not torch.equal(flat(0)["images"], theirs(0)["images"])


def test_the_best_weights_by_validation_are_kept(few: ImageData, run: Path) -> None:
    settings, rows = settings_at(lr=0.01), few.indices("val")
    trained = train_system(Plain(), few, settings, run, [Length(4), Length(12, looks=6)], {"model": "plain"})
    assert [row for row in read_log(run / "before" / "log.jsonl") if row.get("event") == "validation"] == []
    seen = [row for row in read_log(run / "train" / "log.jsonl") if row.get("event") == "validation"]
    assert [row["step"] for row in seen] == [2, 4, 6, 8, 10, 12]
    best = max(seen, key=lambda row: (row["macro_f1"], -row["cross_entropy"]))
    predicted = predict_system(trained.system, few, rows, settings)[0].argmax(1)
    assert macro_f1(few.labels[rows], predicted, CLASSES) == pytest.approx(best["macro_f1"])
    tensors, about = load_weights(run / "model.safetensors")
    assert about["model"] == "plain"
    assert all(torch.equal(tensors[n], t) for n, t in trained.system.state_dict().items())


def test_a_stage_begins_where_the_one_before_ended(few: ImageData, run: Path) -> None:
    system = Plain()
    train_system(system, few, settings_at(lr=0.01, warmup_steps=0), run, [Length(6), Length(1)], {})
    ended, _ = load_weights(run / "before" / "checkpoint" / "step-00000006" / "ema.safetensors")
    moved = (ended["network.1.weight"] - system.state_dict()["network.1.weight"]).abs().max()
    assert 0 < moved < 0.011, "one step of rate 0.01"


def test_a_repeated_training_is_the_same(few: ImageData, tmp_path: Path) -> None:
    """Anew, and called again when it has ended."""
    settings, lengths, ends = settings_at(), [Length(5), Length(7, looks=2)], []
    for name in ("one", "other", "one"):
        torch.manual_seed(3)
        trained = train_system(Plain(), few, settings, tmp_path / name, lengths, {})
        ends.append(trained.system.state_dict()["network.1.weight"])
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


def test_time_ends_a_training_too(few: ImageData, run: Path) -> None:
    lengths = [Length(3), Length(100_000, seconds=2.0)]
    trained = train_system(Plain(), few, settings_at(), run, lengths, {})
    assert 3 < trained.steps < trained.planned
    again = train_system(Plain(), few, settings_at(), run, lengths, {})
    assert again.steps == trained.steps, "the time is up over all sittings"


def test_checkpoints_do_not_come_between(few: ImageData, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_at()
    often = settings.model_copy(update={"runtime": settings.runtime.model_copy(update={"checkpoint_seconds": 1e-9})})
    monkeypatch.setattr("dcube.baselines.training.PACE_SECONDS", 0.001)
    assert system_paces(Plain(), few, often, run)["train"].step >= 1e-3


def test_paces(few: ImageData, run: Path) -> None:
    paces = system_paces(Plain(), few, settings_at(), run)
    assert list(paces) == ["before", "train"] and all(pace.step >= 1e-3 for pace in paces.values())
    assert paces["before"].look == 0 and paces["train"].look > 0
    assert (run / "train" / "runtime.json").is_file()
