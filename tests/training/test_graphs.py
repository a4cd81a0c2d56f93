"""Recorded steps, with a stand-in for CUDA graphs: a replay reads and writes where the recording did."""

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from dcube.config import OptimizerConfig, RuntimeConfig
from dcube.training.graphs import LOADER, WARM_UP, Passes, cuda_graph, waits
from dcube.training.loop import Task, ahead, train
from dcube.training.runtime import Runtime

CPU = RuntimeConfig(device="cpu", threads=1)


class Stub:
    """Does the work once to see where results and gradients lie, and again, into the same places, when replayed."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.recorded, self.replayed = model, 0, 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        found = work.__closure__  # the lists that `work` fills
        work()
        held = next(cell.cell_contents for cell in found or () if isinstance(cell.cell_contents, list))
        loss, parts = held[0]
        gradients = [p.grad for p in self.model.parameters()]

        def replay() -> None:
            self.replayed += 1
            for parameter in self.model.parameters():
                parameter.grad = None
            work()
            new_loss, new_parts = held.pop()
            loss.copy_(new_loss)
            for name, value in parts.items():
                value.copy_(new_parts[name])
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = None  # only what the recording holds counts

        return replay


def batch_of(step: int, rows: int = 4) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(step))}


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
    loss = (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()
    return loss, {"error": loss.detach().sqrt()}


def trained(run: Path, monkeypatch: pytest.MonkeyPatch, recorder: Any = None, rows: Any = lambda step: 4) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    stub = recorder(model) if recorder else None
    monkeypatch.setattr(Runtime, "recorder", property(lambda self: stub))
    task = Task("test", model, lambda step: batch_of(step, rows(step)), loss_of, 4.0)
    result = train(task, OptimizerConfig(steps=12, lr=0.05, dtype="fp32"), 12, 0, run, CPU)
    return result, model, stub


def test_a_recorded_training_is_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain, _ = trained(tmp_path / "plain", monkeypatch)
    _, recorded, stub = trained(tmp_path / "recorded", monkeypatch, Stub)
    assert torch.equal(plain.weight, recorded.weight) and torch.equal(plain.bias, recorded.bias)
    assert (stub.recorded, stub.replayed) == (1, 12 - WARM_UP)
    log = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("plain", "recorded")]
    shorn = [[line.split('"seconds"')[0] for line in lines] for lines in log]
    assert shorn[0] == shorn[1]  # what is logged of a step is not overwritten by the next


def test_another_shape_is_recorded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown = {"rows": lambda step: 4 if step < 6 else 8}
    _, plain, _ = trained(tmp_path / "plain", monkeypatch, **grown)
    _, recorded, stub = trained(tmp_path / "recorded", monkeypatch, Stub, **grown)
    assert torch.equal(plain.weight, recorded.weight)
    assert (stub.recorded, stub.replayed) == (2, 12 - 2 * WARM_UP)


def test_what_cannot_be_recorded_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(model: nn.Module) -> Any:
        def record(work: Callable[[], None]) -> Callable[[], None]:
            work()  # half of it is done, gradients and all
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        return record

    _, plain, _ = trained(tmp_path / "plain", monkeypatch)
    _, other, _ = trained(tmp_path / "refused", monkeypatch, refuse)
    assert torch.equal(plain.weight, other.weight)
    said = capsys.readouterr().out
    assert said.count("cannot be recorded") == 1 and "more" not in said


def test_only_a_wait_of_a_loading_thread_does_not_stand_against_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's remark at the first use of its watch, not other warnings, not what a loading thread waits for."""
    def watch(mode: str) -> None:
        if mode == "warn":
            text = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing ones"
            warnings.warn(text, stacklevel=1)

    def wait() -> None:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", watch)
    with waits(torch.device("cuda")) as found:
        loader = Thread(target=wait, name=f"{LOADER}_0")
        loader.start()
        loader.join()
    assert not found
    with pytest.warns(UserWarning, match="another matter"), waits(torch.device("cuda")) as found:
        warnings.warn("another matter", stacklevel=1)
        wait()
        backward = Thread(target=wait)  # autograd's
        backward.start()
        backward.join()
    assert len(found) == 2
    with waits(torch.device("cpu")) as found:
        pass
    assert not found


def test_a_recording_holds_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        replayed = 0

        def replay(self) -> None:
            Graph.replayed += 1

    for name in ("current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    module = nn.Linear(1, 1)
    alive = weakref.ref(module)
    replay = cuda_graph(partial(module, torch.ones(1)))
    del module
    gc.collect()
    replay()
    assert alive() is not None and Graph.replayed == 1


def test_what_was_recorded_goes_with_the_training() -> None:
    """At once, not when the collector next looks: on a card it is gigabytes."""
    model = nn.Linear(3, 1)

    def run(batch: dict[str, torch.Tensor], step: int) -> Any:
        loss, parts = loss_of(model, batch, step)
        loss.backward()
        return loss.detach(), parts

    passes = Passes(model, run, torch.device("cpu"), Stub(model))
    for step in range(WARM_UP + 2):
        passes(batch_of(step), step)
    alive = weakref.ref(passes)
    assert passes.recording is not None
    gc.disable()
    try:
        del passes
        assert alive() is None
    finally:
        gc.enable()


def test_after_a_failed_recording_none_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.training.graphs.FAILED", ["operation not permitted"])
    with pytest.raises(RuntimeError, match="earlier recording failed: operation not permitted"):
        cuda_graph(lambda: pytest.fail("done"))


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert Runtime(CPU).recorder is None


def test_on_a_gpu_it_is_unless_it_is_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for graphs, expected in (("auto", True), ("never", False)):
        runtime = Runtime(CPU.model_copy(update={"graphs": graphs}))
        runtime.device = torch.device("cuda")
        assert (runtime.recorder is not None) == expected and runtime.loaders > 1


def test_passes_without_a_recorder_are_the_given_ones() -> None:
    model = nn.Linear(3, 1)
    seen: list[int] = []

    def run(batch: dict[str, torch.Tensor], step: int) -> Any:
        seen.append(step)
        return torch.zeros(()), {}

    passes = Passes(model, run, torch.device("cpu"))
    for step in range(WARM_UP + 3):
        passes(batch_of(step), step)
    assert seen == list(range(WARM_UP + 3))


@pytest.mark.parametrize("loaders", [1, 3])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (5, 7), (7, 7), (9, 7)])
def test_batches_come_in_order_however_many_load_them(loaders: int, start: int, stop: int) -> None:
    made = list(ahead(lambda step: {"x": torch.tensor(step)}, start, stop, loaders))
    assert [int(batch["x"]) for batch in made] == list(range(start, stop))
