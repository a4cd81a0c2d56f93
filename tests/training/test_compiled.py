"""Compiled parts: when they are taken, what happens where they fail, and that the losses are those of the model."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from dcube.classifier.model import DCubeClassifier
from dcube.classifier.views import apart
from dcube.config import DiffusionConfig, OptimizerConfig, RuntimeConfig
from dcube.diffusion.build import build_denoiser
from dcube.files import read_json, write_json
from dcube.training.compiled import Gain, compile_parts, compiled_parts, try_compiled
from dcube.training.loop import Task, Trained, train
from dcube.training.runtime import Runtime
from tiny import randomise, tiny_experiment

TREE: dict[str, Any] = {
    "image_size": 8, "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "unet": {"widths": (8, 16), "groups": 4},
}  # fmt: skip
CPU = torch.device("cpu")


class Part(nn.Module):
    """What can be compiled."""

    compiles = True
    attention_kind = "sdpa"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """What one test compiled, and what compiling sets for the process, is not another's."""
    torch._dynamo.reset()
    counters.clear()
    with dynamo.patch(suppress_errors=False, recompile_limit=8), inductor.patch(fallback_random=False):
        yield


def needs_a_compiler() -> None:
    """Skip where torch finds no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"there is no C++ compiler here: {type(error).__name__}")


def without_code(monkeypatch: pytest.MonkeyPatch, backend: Any = "aot_eager") -> list[nn.Module]:
    """torch.compile's graphs, run by `backend`, which compiles no C++; returns a list of the parts to be."""
    whole, parts = nn.Module.compile, []

    def compile(part: nn.Module, **options: Any) -> None:
        parts.append(part)
        whole(part, backend=backend, **options)

    monkeypatch.setattr(nn.Module, "compile", compile)
    return parts


def trained(run: Path, compile: str, steps: int = 3) -> Trained:
    def loss(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        y = model(batch["x"])
        return (y - step).square().mean(), {}

    model = nn.Sequential(Part(), Part())
    task = Task("test", model, lambda step: {"x": torch.ones(2, 3) + step}, loss, 4.0,
                trials=lambda: {"dtype": (model[0], (torch.ones(2, 3),))})  # fmt: skip
    settings = RuntimeConfig(device="cpu", threads=1, compile=compile)
    return train(task, OptimizerConfig(batch_size=2, steps=3, dtype="fp32"), steps, 0, run, settings)


@pytest.mark.parametrize(
    ("gain", "steps", "copies", "pays"),
    [
        (Gain(0.02, 0.01, 10.0), 2100, 1, True),  # 21 s saved
        (Gain(0.02, 0.01, 10.0), 1900, 1, False),
        (Gain(0.02, 0.01, 10.0), 900, 17, True),
        (Gain(0.011, 0.01, 0.1), 10**6, 1, False),  # too little to be told from noise
        (Gain(failure="none"), 10**6, 1, False),
    ],
)
def test_it_pays_where_it_wins_its_cost_back(gain: Gain, steps: int, copies: int, pays: bool) -> None:
    assert gain.pays(steps, copies) is pays


def test_left_open_a_cpu_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.training.runtime.try_compiled", lambda *_: pytest.fail("tried"))
    for setting in ("auto", "never"):
        runtime = Runtime(RuntimeConfig(device="cpu", threads=1, compile=setting))
        runtime.try_compile(lambda: pytest.fail("built"), Part(), 4, 10**9)
        assert runtime.apply(Part())["compile"] == "never"


@pytest.mark.parametrize(("gain", "expected"), [(Gain(2.0, 1.0, 1.0), "always"), (Gain(2.0, 1.9, 1.0), "never")])
def test_on_a_gpu_the_trial_decides(monkeypatch: pytest.MonkeyPatch, gain: Gain, expected: str) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("dcube.training.runtime.try_compiled", lambda *given: asked.append(given) or gain)
    runtime, part = Runtime(RuntimeConfig(device="cpu", threads=1)), Part()
    runtime.device = torch.device("cuda")
    runtime.try_compile(lambda: {"dtype": (part, (torch.ones(2, 3),))}, nn.Sequential(part, Part()), 16, 100)
    assert runtime.compile == expected
    assert asked[0][3:-1] == (torch.device("cuda"), 16, 200)  # passes of the training: 100 steps of 2 parts
    assert asked[0][-1] is not None  # its steps are recorded
    assert runtime.milliseconds == {
        "compile: as it is": 2000, "compile: compiled": 1000 * gain.compiled, "compile: compiling": 1000
    }  # fmt: skip


def test_where_it_fails_the_model_runs_without(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, and bit for bit what a training without it gives, whether it fails in the trial or later."""
    plain = trained(run / "never", "never")

    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler")

    without_code(monkeypatch, broken)
    failed = trained(run / "always", "always")
    said = capsys.readouterr().out
    assert "torch.compile does not work here" in said and said.count("\n") == 1
    assert read_json(run / "always" / "runtime.json")["compile"] == "never"
    monkeypatch.setattr("dcube.training.runtime.try_compiled", lambda *_: Gain(2.0, 1.0, 1.0))  # fails only later
    late = trained(run / "late", "always")
    assert read_json(run / "late" / "runtime.json")["compile"] == "always"
    write_json(run / "elsewhere" / "runtime.json", read_json(run / "late" / "runtime.json"))  # begun where it worked
    torch._dynamo.reset()  # as in another process
    elsewhere = trained(run / "elsewhere", "auto")
    assert "torch.compile does not work here" in capsys.readouterr().out
    assert read_json(run / "elsewhere" / "runtime.json")["compile"] == "never"
    for name, value in plain.model.state_dict().items():
        for other in (failed, late, elsewhere):
            assert torch.equal(other.model.state_dict()[name], value)


def test_a_training_keeps_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = without_code(monkeypatch)
    monkeypatch.setattr("dcube.training.runtime.try_compiled", lambda *_: Gain(2.0, 1.0, 1.0))
    trained(run, "always", steps=2)
    result = trained(run, "auto", steps=3)  # goes on as it began
    assert len(compiled) == 2 + 1 + 2  # between them a copy, to see that it still works
    assert not any(hasattr(part, "_compiled_call_impl") and part._compiled_call_impl for part in result.model.modules())


def test_a_run_of_an_older_version_goes_on_as_it_began(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew nothing of compiling; what is asked for now is written down."""
    without_code(monkeypatch)
    trained(run, "never", steps=2)
    old = {k: v for k, v in read_json(run / "runtime.json").items() if k not in ("compile", "attention")}
    write_json(run / "runtime.json", old)
    trained(run, "always", steps=3)
    assert read_json(run / "runtime.json")["compile"] == "always"


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_compiled_denoisers_are_the_denoisers(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and gradients in float32 to 1e-5, names of weights unchanged; blocks of one kind share their graph."""
    if backbone == "uvit":
        needs_a_compiler()
    else:
        without_code(monkeypatch)
    model = build_denoiser(DiffusionConfig.model_validate({**TREE, "backbone": backbone}), 1, 3)
    randomise(model)
    other = copy.deepcopy(model)
    compile_parts(other, strict=True)
    assert len(compiled_parts(other)) == {"uvit": 3, "unet": 6}[backbone]
    x, t = torch.randn(4, 1, 8, 8), torch.arange(4)
    found = [m(x, t, torch.tensor([0, 1, 2, 3]))[0] for m in (model, other)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    for noise in found:
        noise.square().mean().backward()
    assert counters["stats"]["unique_graphs"] == {"uvit": 2, "unet": 5}[backbone]
    for (name, one), (same, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert name == same
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_a_compiled_classifier_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and running statistics of image and mirror image apart, the same graph in every step."""
    without_code(monkeypatch)
    torch.manual_seed(0)
    model = DCubeClassifier(tiny_experiment(classifier={"dropout": 0}).classifier, 3, [4]).train()
    other = copy.deepcopy(model)
    compile_parts(other, strict=True)
    graphs = []
    for _ in range(2):
        images, maps = torch.rand(4, 1, 32, 32), [torch.randn(4, 4, 4, 4)]
        logits = []
        for m in (model, other):
            with apart(m, 2):
                logits.append(m(images, maps))
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 1]
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5, msg=name)


def test_a_trial_gives_times() -> None:
    needs_a_compiler()
    gain = try_compiled((Part(), (torch.ones(2, 3),)), torch.float32, "sdpa", CPU, 8)
    assert not gain.failure and 0 < gain.compiled < gain.cost and gain.eager > 0


def test_a_short_training_is_not_delayed_by_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all passes take less than compiling could win back, nothing is compiled and the model stays as it is."""
    def compiling(*_: Any, **__: Any) -> None:
        raise RuntimeError("compiled")

    monkeypatch.setattr("dcube.training.compiled.compile_parts", compiling)
    trial = Part(), (torch.ones(2, 3),)
    gain = try_compiled(trial, torch.float32, "sdpa", CPU, 8, total=100)
    assert not gain.failure and gain.eager > 0 and not gain.pays(100)
    assert set(gain.milliseconds()) == {"compile: as it is"}
    long = try_compiled(trial, torch.float32, "sdpa", CPU, 8, total=1e12)
    assert "compiled" in long.failure  # it was tried
