"""The trial at the start: who wins, by how much, and that a training keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcube.config import DiffusionConfig, OptimizerConfig, RuntimeConfig
from dcube.diffusion.build import build_denoiser
from dcube.files import read_json
from dcube.training import fastest as module
from dcube.training.fastest import fastest, set_attention
from dcube.training.log import read_log
from dcube.training.loop import Task, train
from dcube.training.runtime import Runtime

CPU = RuntimeConfig(device="cpu", threads=1)
BF16, FP32 = torch.bfloat16, torch.float32


class Slow(nn.Module):
    """A layer whose passes seem to take `costs[dtype, kind]` seconds; nothing waits."""

    attention_kind = "auto"
    now = 0.0

    def __init__(self, costs: dict[Any, float]) -> None:
        super().__init__()
        self.weight, self.costs = nn.Parameter(torch.ones(3, 3)), costs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.weight
        Slow.now += self.costs[y.dtype, self.attention_kind]
        return y


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    Slow.now = 0.0
    monkeypatch.setattr(module.time, "thread_time", lambda: Slow.now)


def trials(**costs: float) -> dict[str, Any]:
    """Costs in seconds: bf16_sdpa, bf16_explicit, fp32_sdpa, fp32_explicit."""
    named = {"bf16": BF16, "fp32": FP32}
    layer = Slow({(named[name.split("_")[0]], name.split("_")[1]): cost for name, cost in costs.items()})
    return {"dtype": (layer, (torch.ones(2, 3),)), "attention": (layer, (torch.ones(2, 3),))}


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({"bf16_sdpa": 1.0, "fp32_sdpa": 2.0, "bf16_explicit": 0.5, "fp32_explicit": 9.0}, (BF16, "explicit")),
        ({"bf16_sdpa": 1.0, "fp32_sdpa": 0.9, "bf16_explicit": 0.9, "fp32_explicit": 0.1}, (BF16, "sdpa")),  # 1.11
        ({"bf16_sdpa": 1.0, "fp32_sdpa": 0.8, "bf16_explicit": 0.1, "fp32_explicit": 0.9}, (FP32, "sdpa")),  # 1.25
        ({"bf16_sdpa": 1.2, "fp32_sdpa": 1.0, "bf16_explicit": 0.1, "fp32_explicit": 0.8}, (FP32, "explicit")),
    ],
)
def test_the_default_is_left_for_something_clearly_faster(costs: dict[str, float], expected: Any) -> None:
    found = fastest(trials(**costs), [BF16, FP32], ["sdpa", "explicit"])
    assert (found.dtype, found.attention) == expected
    assert found.milliseconds and len(found.milliseconds) == 4
    assert found.milliseconds["dtype: bfloat16 sdpa"] == pytest.approx(1000 * costs["bf16_sdpa"])


def test_what_is_given_is_not_tried() -> None:
    costs = {"bf16_sdpa": 9.0, "fp32_sdpa": 1.0, "bf16_explicit": 1.0, "fp32_explicit": 0.5}
    assert fastest(trials(**costs), [BF16], ["sdpa"]).milliseconds is None
    only_attention = fastest(trials(**costs), [FP32], ["sdpa", "explicit"])
    assert (only_attention.dtype, only_attention.attention) == (FP32, "explicit")
    assert fastest({"dtype": trials(**costs)["dtype"]}, [BF16, FP32], ["sdpa", "explicit"]).attention == "sdpa"


def test_a_trial_leaves_nothing_behind() -> None:
    """No gradient, no changed statistics, no other random numbers, as many threads as before."""
    trial = trials(bf16_sdpa=1, fp32_sdpa=1, bf16_explicit=1, fp32_explicit=1)
    layer, normed = trial["dtype"][0], nn.Sequential(trial["dtype"][0], nn.BatchNorm1d(3))
    trial["dtype"] = (normed, trial["dtype"][1])
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    fastest(trial, [BF16, FP32], ["sdpa", "explicit"])
    assert layer.weight.grad is None and layer.attention_kind == "auto" and torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], value) for name, value in normed.state_dict().items())


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_every_backbone_can_be_tried(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real clock
    monkeypatch.setattr(module, "SECONDS", 0.0)
    tree = {
        "backbone": backbone, "image_size": 16, "unet": {"widths": (8, 16), "groups": 4},
        "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    }  # fmt: skip
    model = build_denoiser(DiffusionConfig.model_validate(tree), 1, 3)
    given = model.trials(torch.zeros(4, 1, 16, 16), torch.zeros(4).long())
    found = fastest(given, [BF16, FP32], ["sdpa", "explicit"])
    assert len(found.milliseconds or {}) == {"uvit": 4, "unet": 2}[backbone]
    assert all(p.grad is None for p in model.parameters())


def task(model: nn.Module, seen: list[Any]) -> Task:
    def loss(layer: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        y = layer(batch["x"])
        seen.append((y.dtype, layer.attention_kind))
        return y.float().square().mean(), {"part": y.float().mean().detach()}

    given = {"dtype": (model, (torch.ones(2, 3),)), "attention": (model, (torch.ones(2, 3),))}
    return Task("test", model, lambda step: {"x": torch.ones(2, 3)}, loss, 4.0, trials=lambda: given)


def test_a_training_keeps_what_the_trial_chose(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.training.runtime.fast_dtype", lambda device: BF16)
    first = {(BF16, "sdpa"): 1.0, (FP32, "sdpa"): 2.0, (BF16, "explicit"): 0.5}
    later = {(BF16, "sdpa"): 2.0, (FP32, "sdpa"): 0.1, (BF16, "explicit"): 3.0}  # what a continued one would choose
    seen: list[Any] = []
    for steps, costs in ((2, first), (4, later)):
        train(task(Slow(costs), seen), OptimizerConfig(steps=4), steps, 0, run, CPU)
    assert seen == [(BF16, "explicit")] * 4
    held = read_json(run / "runtime.json")
    assert (held["dtype"], held["attention"], held["device"]) == ("bfloat16", "explicit", "cpu")
    assert held["milliseconds"]["attention: bfloat16 explicit"] == 500
    rows = [row for row in read_log(run / "log.jsonl") if row.get("event") == "runtime"]
    assert rows == [{"step": 0, "event": "runtime", "dtype": "bfloat16", "attention": "explicit", "compile": "never",
                     "device": "cpu"}]  # fmt: skip


def test_a_setting_switches_the_trial_off(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.training.runtime.fast_dtype", lambda device: BF16)
    seen: list[Any] = []
    settings = RuntimeConfig(device="cpu", threads=1, attention="explicit")
    costs = {(FP32, "explicit"): 1.0}  # anything else would be a KeyError
    train(task(Slow(costs), seen), OptimizerConfig(steps=2, dtype="fp32"), 2, 0, run, settings)
    assert seen == [(FP32, "explicit")] * 2


def test_without_bf16_in_the_hardware_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.training.runtime.fast_dtype", lambda device: FP32)
    runtime = Runtime(CPU, "auto")
    runtime.choose(lambda: pytest.fail("tried"))
    assert runtime.dtype == FP32 and runtime.attention == "sdpa"


def test_attention_is_set_in_every_module_that_has_it() -> None:
    model = nn.Sequential(Slow({}), nn.Linear(2, 2), nn.Sequential(Slow({})))
    set_attention(model, "explicit")
    assert [m.attention_kind for m in model.modules() if isinstance(m, Slow)] == ["explicit"] * 2
    assert not hasattr(model[1], "attention_kind")
