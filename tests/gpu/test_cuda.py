"""On a CUDA GPU: what the CPU's tests cannot see. Skipped where there is none."""

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dcube.classifier.batches import ClassifierBatches
from dcube.classifier.model import DCubeClassifier, load_predictor, predict_rows
from dcube.classifier.train import ClassifierLoss, train_classifier
from dcube.config import DiffusionConfig, Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.objective import GenerativeObjective
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import PairBatches, frozen_diffusion, load_diffusion, train_diffusion
from dcube.errors import MemoryShort
from dcube.experiments.step1 import study
from dcube.features.frozen import FeatureCache, FrozenFeatures
from dcube.features.selection import select_blocks
from dcube.files import read_json
from dcube.training.log import read_log
from dcube.training.runtime import Runtime
from tiny import tiny_denoiser, tiny_diffusion, tiny_experiment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
UVIT = {"backbone": "uvit", "image_size": 32, "uvit": {"patch": 4, "width": 32, "depth": 2, "heads": 2}}


def experiment(**changes: Any) -> Experiment:
    return tiny_experiment(**{"runtime": {"device": "cuda"}, **changes})


def trained(data: ImageData, run: Path, **changes: Any) -> Any:
    return train_diffusion(data, experiment(**changes), run)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run / "log.jsonl") if "loss" in row]


def distance(a: nn.Module, b: nn.Module) -> float:
    """Of all weights together, relative to their length."""
    one, other = (torch.cat([p.detach().double().cpu().flatten() for p in m.parameters()]) for m in (a, b))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_a_training_is_the_cpus(data: ImageData, tmp_path: Path, backbone: str) -> None:
    changes: dict[str, Any] = {"diffusion": UVIT if backbone == "uvit" else {}}
    there, _ = train_diffusion(data, experiment(**changes), tmp_path / "cuda")
    here, _ = train_diffusion(data, tiny_experiment(**changes), tmp_path / "cpu")
    np.testing.assert_allclose(losses(tmp_path / "cuda"), losses(tmp_path / "cpu"), rtol=0.01)
    assert distance(there.model, here.model) < 0.02


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recorded_steps_of_step_1_are_the_steps(
    data: ImageData, tmp_path: Path, backbone: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for kind in ("never", "auto"):
        changes: dict[str, Any] = {
            "diffusion": (UVIT if backbone == "uvit" else {}) | {"optimizer": {"dtype": dtype}},
            "runtime": {"device": "cuda", "graphs": kind},
        }  # fmt: skip
        found.append(trained(data, tmp_path / kind, **changes)[0].model)
    assert "cannot be recorded" not in capsys.readouterr().out
    np.testing.assert_allclose(losses(tmp_path / "auto"), losses(tmp_path / "never"), rtol=1e-3)
    assert distance(*found) < 5e-3


@pytest.mark.parametrize("timesteps", [(2, 9), None])  # features from a cache on the card, and live
def test_recorded_steps_of_step_2_are_the_steps(
    data: ImageData, tmp_path: Path, timesteps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for kind in ("never", "auto"):
        settings = experiment(
            features={"timesteps": timesteps}, classifier={"cycle_fraction": 0.5, "dropout": 0.5},
            runtime={"device": "cuda", "graphs": kind},
        )  # fmt: skip
        start = tiny_diffusion()
        diffusion = frozen_diffusion(start.model, start.config, 1, start.classes, "cuda")
        found.append(train_classifier(data, settings, diffusion, [0, 1], tmp_path / kind)[0].model)
    assert "cannot be recorded" not in capsys.readouterr().out
    np.testing.assert_allclose(losses(tmp_path / "auto"), losses(tmp_path / "never"), rtol=5e-3)
    assert distance(*found) < 0.05  # two trainings alike on a GPU differ by 0.01: sums in another order


def test_what_waits_for_the_card_is_trained_unrecorded(
    data: ImageData, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = experiment(features={"input": "noised", "timesteps": None})  # its noise is drawn by the number of t
    start = tiny_diffusion()
    diffusion = frozen_diffusion(start.model, start.config, 1, start.classes, "cuda")
    _, result = train_classifier(data, settings, diffusion, [0, 1], run)
    assert result.finished and all(np.isfinite(losses(run)))
    assert capsys.readouterr().out.count("cannot be recorded") == 1


def test_step_1_in_bf16_with_the_contrastive_term_is_continued_after_a_stop(data: ImageData, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "diffusion": {"optimizer": {"dtype": "auto"}, "contrastive": {"distance": "centred", "pairs": "all"}},
        "runtime": {"device": "cuda", "checkpoint_seconds": 0},
    }
    whole, _ = trained(data, tmp_path / "whole", **changes)
    train_diffusion(data, experiment(**changes), tmp_path / "parts", deadline=time.monotonic() + 0.3)
    parts, result = trained(data, tmp_path / "parts", **changes)
    assert result.finished and result.step == 12
    assert read_json(tmp_path / "parts" / "runtime.json")["dtype"] == "bfloat16"
    assert distance(parts.model, whole.model) < 0.01


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_compiled_parts_give_the_losses_of_the_model_as_it_is(data: ImageData, tmp_path: Path, backbone: str) -> None:
    held = {}
    for kind in ("never", "always"):
        changes: dict[str, Any] = {
            "diffusion": UVIT if backbone == "uvit" else {}, "runtime": {"device": "cuda", "compile": kind},
        }  # fmt: skip
        trained(data, tmp_path / kind, **changes)
        assert read_json(tmp_path / kind / "runtime.json")["compile"] == kind
        held[kind] = losses(tmp_path / kind)
    np.testing.assert_allclose(held["always"], held["never"], rtol=0.01)


def test_a_cache_lies_on_the_card_and_holds_what_is_computed_live(data: ImageData, tmp_path: Path) -> None:
    diffusion = tiny_diffusion()
    diffusion = frozen_diffusion(diffusion.model, diffusion.config, 1, diffusion.classes, "cuda")
    frozen = FrozenFeatures(diffusion, [0, 1], "clean", 4)
    indices = data.indices("train")
    cache = FeatureCache(frozen, data, indices, (2, 9), True, tmp_path)
    assert cache.on_card is not None
    maps = cache.maps(np.array([3, 4]), np.array([False, True]), np.array([1, 0]))
    images = data.images(indices[[3, 4]], 8)
    images[1] = images[1].flip(-1)
    live = frozen(images.to("cuda"), torch.tensor([9, 2], device="cuda"))
    for held, map in zip(maps, live, strict=True):
        assert held.is_cuda
        torch.testing.assert_close(held.float(), map, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("timesteps", [(2, 9), None])
def test_step_2_trains_with_the_cycle_term_and_predicts_as_the_cpu_does(
    data: ImageData, run: Path, timesteps: Any
) -> None:
    settings = experiment(
        features={"timesteps": timesteps}, classifier={"cycle_fraction": 0.5, "optimizer": {"dtype": "auto"}}
    )
    start = tiny_diffusion()
    diffusion = frozen_diffusion(copy.deepcopy(start.model), start.config, 1, start.classes, "cuda")
    predictor, result = train_classifier(data, settings, diffusion, [0, 1], run)
    assert result.finished and all(np.isfinite(losses(run)))
    there, _ = predict_rows(predictor, data, data.indices("test"))
    cpu = frozen_diffusion(copy.deepcopy(start.model), start.config, 1, start.classes, "cpu")
    here, _ = predict_rows(load_predictor(run / "model.safetensors", cpu), data, data.indices("test"))
    np.testing.assert_allclose(there, here, atol=5e-3)


def test_the_loss_of_step_2_is_the_cpus(data: ImageData, tmp_path: Path) -> None:
    values = []
    for device in ("cpu", "cuda"):
        settings = tiny_experiment(runtime={"device": device})
        start = tiny_diffusion()
        diffusion = frozen_diffusion(start.model, start.config, 1, start.classes, device)
        frozen = FrozenFeatures(diffusion, [0, 1], "clean", 4)
        batches = ClassifierBatches(data, settings, frozen, tmp_path)
        torch.manual_seed(0)
        model = DCubeClassifier(settings.classifier, 3, [shape[0] for shape in frozen.shapes]).to(device)
        batch = {name: v.to(device) for name, v in batches(0).items()}
        loss, _ = ClassifierLoss(settings, frozen, batches.labels, 3)(model.eval(), batch, 0)
        values.append(loss.item())
    assert values[1] == pytest.approx(values[0], rel=1e-3)


def test_the_loss_of_step_1_in_float64_is_the_cpus(data: ImageData) -> None:
    settings = experiment().diffusion
    batch = PairBatches(data, settings, 0)(0)
    values = []
    for device in ("cpu", "cuda"):
        model = tiny_denoiser().to(device)
        schedule = Schedule.of(settings).to(device)
        objective = GenerativeObjective(schedule, settings.contrastive, model.middle)
        given = {name: v.to(device) for name, v in batch.items()}
        given = {name: v.double() if v.is_floating_point() else v for name, v in given.items()}
        values.append(objective(model, **given)[0].item())
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "dpm", "sde", "ddpm"])
def test_samples_are_the_cpus(sampler: str) -> None:
    config = DiffusionConfig.model_validate(
        tiny_experiment().diffusion.model_dump() | {"sampler": sampler, "sample_dtype": "fp32"}
    )
    start = tiny_diffusion(config=config)
    images = [
        frozen_diffusion(copy.deepcopy(start.model), config, 1, start.classes, device).sample(torch.arange(3), 0)
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(images[1], images[0], atol=5e-3, rtol=0)


def test_the_selection_is_the_cpus(data: ImageData) -> None:
    found = []
    for device in ("cpu", "cuda"):
        start = tiny_diffusion()
        diffusion = frozen_diffusion(start.model, start.config, 1, start.classes, device)
        found.append(select_blocks(diffusion, data, experiment().features, 0))
    assert found[0]["selected"] == found[1]["selected"]
    np.testing.assert_allclose(*([b["p"] for b in one["blocks"]] for one in found), rtol=0.05, atol=1e-6)


def test_a_full_card_is_one_sentence(data: ImageData, run: Path) -> None:
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(200 * 2**20 / total)
    try:
        with pytest.raises(MemoryShort, match=r"lower diffusion\.optimizer\.batch_size or diffusion\.image_size"):
            trained(data, run, diffusion={"image_size": 32, "unet": {"widths": (512, 512), "groups": 4}})
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_the_study_of_step_1_works_on_the_card(data: ImageData, tmp_path: Path) -> None:
    settings = experiment(features={"top_k": 1}, classifier={"lambda_consistency": 0.0})
    [unit, *_] = study(
        {"tiny": data.store}, settings, tmp_path, folds=2, seeds=(0,), jobs=1, timesteps=(3,), quarter=False,
        relatives=False,
    )  # fmt: skip
    assert load_diffusion(unit.directory / "step1" / "trained" / "model.safetensors").config == settings.diffusion


def test_auto_takes_the_card_and_bf16() -> None:
    runtime = Runtime(experiment(runtime={"device": "auto"}).runtime, "auto")
    assert runtime.device.type == "cuda" and runtime.dtype == torch.bfloat16
