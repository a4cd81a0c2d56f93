"""Looks at a training come by the clock, are outside of it, and change nothing."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import CPU, FP32, batch_of, squares
from torch import nn

from dcube.config import OptimizerConfig, RuntimeConfig
from dcube.training.clock import Clock, Watch
from dcube.training.log import read_log
from dcube.training.loop import Task, train

STEP, LOOK = 0.02, 0.3  # seconds


def slow(step: int) -> dict[str, torch.Tensor]:
    time.sleep(STEP)
    return batch_of(step)


def watched(minutes: float, seen: list[int], **changes: Any) -> Task:
    def look(step: int, ema: nn.Module, extra: dict[str, Any]) -> dict[str, Any]:
        assert not ema.training
        time.sleep(LOOK)
        seen.append(step)
        torch.manual_seed(time.time_ns())  # a look that draws numbers must not change the training
        return {"event": "look"}

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.1))
    given: dict[str, Any] = {"name": "test", "model": model, "batch": slow, "loss": squares}
    return Task(**{**given, "steps_per_epoch": 4.0, "watch": Watch(minutes, look), **changes})


def test_stopped_time_does_not_count_and_moves_the_deadline() -> None:
    clock = Clock(before=100.0, deadline=time.monotonic() + 0.2)
    with clock.stopped():
        time.sleep(0.3)
    assert not clock.is_over and clock.paused == pytest.approx(0.3, abs=0.1)
    assert clock.seconds == pytest.approx(100, abs=0.1)
    time.sleep(0.25)
    assert clock.is_over and clock.seconds == pytest.approx(100.25, abs=0.15)
    assert not Clock(0.0, None).is_over


def test_looks_come_by_the_clock_outside_of_it_and_leave_the_weights_alone(run: Path) -> None:
    config = OptimizerConfig(steps=30, **FP32)
    plain = train(watched(0, [], watch=None), config, 30, 0, run / "plain", CPU)
    seen: list[int] = []
    result = train(watched(0.2 / 60, seen), config, 30, 0, run / "watched", CPU)
    assert seen[0] == 0 and seen[-1] == 30 and 3 <= len(seen) < 12 and seen == sorted(set(seen))
    rows = read_log(run / "watched" / "log.jsonl")
    assert [row["step"] for row in rows if row.get("event") == "look"] == seen
    assert result.paused == pytest.approx(LOOK * len(seen), rel=0.3)
    assert rows[-1]["seconds"] >= 0.02 * 29 and rows[-1]["seconds"] < LOOK * len(seen)
    for one, other in zip(plain.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_deadline_is_not_charged_for_looks(run: Path) -> None:
    config, seen = OptimizerConfig(steps=500, **FP32), list[int]()
    result = train(watched(0.1 / 60, seen), config, 500, 0, run, CPU, deadline=time.monotonic() + 0.5)
    assert result.step >= 8 and len(seen) >= 3 and seen[-1] == result.step, "also at the end of a sitting"


def test_seconds_and_looks_go_on_over_sittings(run: Path) -> None:
    settings, config = RuntimeConfig(device="cpu", threads=1, checkpoint_seconds=0), OptimizerConfig(steps=60, **FP32)
    seen: list[int] = []
    train(watched(10, seen), config, 20, 0, run, settings)
    assert seen == [0, 20]
    train(watched(10, seen), config, 20, 0, run, settings)
    assert seen == [0, 20], "a sitting in which nothing is trained has nothing to look at"
    train(watched(10, seen), config, 40, 0, run, settings)
    seconds = [row["seconds"] for row in read_log(run / "log.jsonl") if "seconds" in row]
    assert seconds == sorted(seconds) and seconds[-1] >= 40 * STEP * 0.9 and seen == [0, 20, 40]
