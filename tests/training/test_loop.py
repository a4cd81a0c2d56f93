"""The training loop: rates, parameter groups, NaN, deadline, log."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from dcube.config import OptimizerConfig, RuntimeConfig
from dcube.errors import DCubeError, InputError, MemoryShort
from dcube.training.log import Log, read_log
from dcube.training.loop import Hook, Task, learning_rate, make_optimizer, train
from dcube.training.runtime import Runtime, check_device, memory_advice
from dcube.training.state import checkpoints

CPU = RuntimeConfig(device="cpu", threads=1)
FP32: dict[str, Any] = {"dtype": "fp32", "lr": 0.05}


def batch_of(step: int) -> dict[str, torch.Tensor]:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return {"x": x, "y": x.sum(1, keepdim=True)}


def squares(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
    loss = (model(batch["x"]) - batch["y"]).square().mean()
    return loss, {"error": loss.detach().sqrt()}


def task_of(**changes: Any) -> Task:
    torch.manual_seed(0)
    given: dict[str, Any] = {"name": "test", "model": nn.Linear(3, 1), "batch": batch_of, "loss": squares}
    return Task(**{**given, "steps_per_epoch": 4.0, **changes})


def plain_adamw(steps: int, lr: float, clip: float) -> torch.Tensor:
    """The weights that a loop without any machinery arrives at."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(
        [{"params": [model.weight], "weight_decay": 0.3}, {"params": [model.bias], "weight_decay": 0.0}], lr=lr
    )  # not fused
    for step in range(steps):
        loss, _ = squares(model, batch_of(step), step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return model.weight.detach()


def test_the_loop_is_plain_adamw_with_clipping(run: Path) -> None:
    task, config = task_of(), OptimizerConfig(steps=20, weight_decay=0.3, grad_clip=0.5, **FP32)
    result = train(task, config, 20, 0, run, CPU)
    assert result.finished and result.step == 20
    torch.testing.assert_close(task.model.weight.detach(), plain_adamw(20, 0.05, 0.5), rtol=1e-6, atol=1e-7)  # type: ignore[union-attr]
    assert not torch.equal(plain_adamw(20, 0.05, 0.5), plain_adamw(20, 0.05, 1e9))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9)),
    ],
)
def test_every_optimiser_is_torchs_own_also_after_a_stop(run: Path, name: Any, theirs: Any) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    groups = [{"params": [model.weight], "weight_decay": 0.3}, {"params": [model.bias], "weight_decay": 0.0}]
    optimizer = theirs(groups, lr=0.01)
    for step in range(20):
        squares(model, batch_of(step), step)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    config = OptimizerConfig(name=name, lr=0.01, steps=20, weight_decay=0.3, grad_clip=None, dtype="fp32")
    train(task_of(), config, 9, 0, run, CPU)
    task = task_of()
    train(task, config, 20, 0, run, CPU)  # goes on with the optimiser's own state
    torch.testing.assert_close(task.model.weight.detach(), model.weight.detach(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


def test_settings_of_another_optimiser_are_errors() -> None:
    with pytest.raises(ValueError, match="momentum belongs to name sgd"):
        OptimizerConfig(steps=1, momentum=0.9)
    with pytest.raises(ValueError, match="betas belong to"):
        OptimizerConfig(steps=1, name="sgd", betas=(0.8, 0.9))
    slow = make_optimizer(task_of(), OptimizerConfig(steps=1, name="sgd", momentum=0.5))
    assert slow.defaults["momentum"] == 0.5


def test_learning_rate() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=4, steps=20, decay="cosine")
    assert [learning_rate(config, k, 20) for k in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert learning_rate(config, 4, 20) == 2.0
    assert math.isclose(learning_rate(config, 12, 20), 1.0)
    assert learning_rate(config, 20, 20) == 0.0
    constant = OptimizerConfig(lr=2.0, steps=20)
    assert {learning_rate(constant, k, 20) for k in range(25)} == {2.0}


def test_parameter_groups() -> None:
    """Weight decay on matrices alone, the scale of a group kept, frozen parameters left out."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[1].bias.requires_grad_(False)
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "scale": 0.1}]
    optimizer = make_optimizer(task_of(learning_rates=lambda _: groups), OptimizerConfig(steps=1, weight_decay=0.2))
    found = [(g["params"][0].shape, g["weight_decay"], g["scale"]) for g in optimizer.param_groups]
    assert found == [((2, 3), 0.2, 1.0), ((2,), 0.0, 1.0), ((1, 2), 0.2, 0.1)]


def test_a_group_of_scale_zero_stands_still(run: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = model[0].weight.detach().clone(), model[1].weight.detach().clone()
    groups = [{"params": model[0].parameters(), "scale": 0.0}, {"params": model[1].parameters()}]
    train(task_of(model=model, learning_rates=lambda _: groups), OptimizerConfig(steps=3, **FP32), 3, 0, run, CPU)
    assert torch.equal(model[0].weight, before[0]) and not torch.equal(model[1].weight, before[1])


def test_a_launcher_does_not_settle_precision_and_gradients(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for name in ("plain", "launched"):
        AcceleratorState._reset_state(True)
        torch.manual_seed(0)
        task = task_of(model=nn.Linear(3, 1))
        train(task, OptimizerConfig(steps=3, name="sgd", **FP32), 3, 0, run / name, CPU)
        weights.append(task.model.weight.detach().clone())
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state(True)
    assert torch.equal(*weights)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_says_where(run: Path, bad: float) -> None:
    def loss(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        value, parts = squares(model, batch, step)
        return (value * bad if step == 6 else value), parts  # the 7th step

    with pytest.raises(DCubeError) as error:
        task = task_of(loss=loss, optimizer_settings="test.optimizer")
        train(task, OptimizerConfig(steps=30, **FP32), 30, 0, run, CPU)
    good = checkpoints(run / "checkpoint")[-1]
    message = str(error.value)
    assert "at step 7 " in message and f"(loss {bad:.4g}, error 2." in message and "lower test.optimizer.lr" in message
    assert str(good) in message and good.name == "step-00000000"
    assert not isinstance(error.value, InputError)


def test_no_checkpoint_is_saved_after_a_loss_that_is_not_finite(run: Path) -> None:
    def loss(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        value, parts = squares(model, batch, step)
        return (value * float("nan") if step == 2 else value), parts

    every_step = RuntimeConfig(device="cpu", checkpoint_seconds=0)
    with pytest.raises(DCubeError, match="step-00000002"):
        train(task_of(loss=loss), OptimizerConfig(steps=9, **FP32), 9, 0, run, every_step)
    assert [path.name for path in checkpoints(run / "checkpoint")] == ["step-00000002"]


def test_the_deadline_ends_at_a_step_boundary_with_everything_saved(run: Path) -> None:
    def slow(step: int) -> dict[str, torch.Tensor]:
        time.sleep(0.02)
        return batch_of(step)

    config = OptimizerConfig(steps=500, **FP32)
    result = train(task_of(batch=slow), config, 500, 0, run, CPU, deadline=time.monotonic() + 0.3)
    assert 0 < result.step < 500 and not result.finished
    assert checkpoints(run / "checkpoint")[-1].name == f"step-{result.step:08d}"
    assert read_log(run / "log.jsonl")[-1]["step"] == result.step
    nothing = train(task_of(), config, 500, 0, run, CPU, deadline=time.monotonic() - 1)
    assert nothing.step == result.step


def test_log_rows_are_means_with_every_part(run: Path) -> None:
    seen: list[float] = []

    def loss(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        value, parts = squares(model, batch, step)
        seen.append(value.item())
        return value, parts

    config = OptimizerConfig(steps=25, warmup_steps=3, **FP32)
    train(task_of(loss=loss), config, 25, 0, run, CPU)
    rows = read_log(run / "log.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 25]
    for row, (start, stop) in zip(rows, [(0, 10), (10, 20), (20, 25)], strict=True):
        assert math.isclose(row["loss"], sum(seen[start:stop]) / (stop - start), rel_tol=1e-5)
        assert {"error", "grad_norm", "lr", "epoch", "seconds"} <= set(row)
        assert row["lr"] == learning_rate(config, stop - 1, 25) and row["epoch"] == stop / 4


def test_hooks_see_the_ema_and_are_logged(run: Path) -> None:
    calls = []

    def look(step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        assert not ema.training
        calls.append(step)
        extra["last"] = step
        return {"event": "look"}

    result = train(task_of(hooks=[Hook(4, look)]), OptimizerConfig(steps=10, **FP32), 10, 0, run, CPU)
    assert calls == [4, 8, 10] and result.extra == {"last": 10}
    assert [row["step"] for row in read_log(run / "log.jsonl") if row.get("event") == "look"] == calls


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 5}\n{"step": 10}\n{"step": 15}\n{"step": 2', encoding="utf-8")
    log = Log(path, step=10)
    log.write({"step": 11})
    log.close()
    assert [row["step"] for row in read_log(path)] == [5, 10, 11]


def test_a_training_keeps_its_dtype(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` asks the hardware once; continued elsewhere, the training goes on as it began."""
    dtypes = []

    def loss(model: nn.Module, batch: dict[str, torch.Tensor], step: int) -> Any:
        dtypes.append(model(batch["x"]).dtype)
        return squares(model, batch, step)

    config = OptimizerConfig(steps=4, lr=0.01)
    monkeypatch.setattr("dcube.training.runtime.fast_dtype", lambda device: torch.bfloat16)
    train(task_of(loss=loss), config, 2, 0, run, CPU)
    monkeypatch.setattr("dcube.training.runtime.fast_dtype", lambda device: torch.float32)
    train(task_of(loss=loss), config, 4, 0, run, CPU)
    assert dtypes == [torch.bfloat16] * 4


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_names_the_settings(error: Exception) -> None:
    with pytest.raises(MemoryShort, match="lower a.batch_size"), memory_advice("a.batch_size"):
        raise error


def test_another_runtime_error_is_not_disguised() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_advice("x"):
        raise RuntimeError("shapes differ")


def test_a_device_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="There is no device 'gpu'"):
        check_device("gpu")
    assert Runtime(CPU).device.type == "cpu"


def test_fewer_gpus_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is made; processes on other machines have GPUs of their own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"MASTER_ADDR": "localhost", "RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="4 processes and 2 GPU.*nproc-per-node 2"):
        check_device("auto")
    check_device("cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_device("cuda")
