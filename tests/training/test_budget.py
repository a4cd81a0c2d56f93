"""Budgets: what a person may write, how many steps they buy, and what a continued training has left."""

import json
import time
from pathlib import Path

import pytest

from dcube.config import OptimizerConfig
from dcube.errors import DCubeError, InputError
from dcube.training.budget import LOOKS, USED, Budget, Length, Pace, deadline, length_of, spent


@pytest.mark.parametrize(
    ("text", "seconds", "epochs", "shown"),
    [
        ("3min", 180, None, "3 min"),
        ("90s", 90, None, "1.5 min"),
        ("1h", 3600, None, "60 min"),
        ("3", 180, None, "3 min"),
        (".2min", 12, None, "0.2 min"),
        ("20epochs", None, 20, "20 epochs"),
        ("1 epoch", None, 1, "1 epochs"),
    ],
)
def test_what_may_be_written(text: str, seconds: float | None, epochs: float | None, shown: str) -> None:
    found = Budget.parse(text)
    assert (found.seconds, found.epochs) == (None if seconds is None else pytest.approx(seconds), epochs)
    assert str(found) == shown


@pytest.mark.parametrize("text", ["", "three", "-1min", "0", "0epochs", "3 parsecs", "1e3"])
def test_what_may_not(text: str) -> None:
    with pytest.raises(InputError, match="--long .*is not a budget such as 3min"):
        Budget.parse(text, "--long")


def test_epochs_in_steps() -> None:
    assert length_of(Budget(epochs=3).part(0.5), 100, 10, None) == Length(15)
    assert length_of(Budget(epochs=0.001), 100, 10, None).steps == 1


def test_time_in_steps() -> None:
    """Steps and validations together take what is planned; what is gone before counts."""
    found = length_of(Budget(seconds=100), 0, 1, Pace(0.1, 0.5), overhead=15)
    assert found.looks == LOOKS and found.seconds == 85
    assert found.steps * 0.1 + found.looks * 0.5 == pytest.approx(USED * 100 - 15, abs=0.1)
    few = length_of(Budget(seconds=100), 0, 1, Pace(0.1, 8.0))
    assert few.looks == 2 and few.steps * 0.1 + 2 * 8 == pytest.approx(USED * 100, abs=0.1)


@pytest.mark.parametrize("overhead", [0.0, 200.0])
def test_time_that_buys_no_step_is_an_error(overhead: float) -> None:
    """Else a network of random weights would stand in the table."""
    with pytest.raises(DCubeError, match=f"100 s do not suffice: {overhead:.0f} s go before the first step"):
        length_of(Budget(seconds=100), 0, 1, Pace(90.0, 9.0), overhead)


def test_a_short_training_warms_up_in_a_tenth_of_it() -> None:
    config = OptimizerConfig(epochs=3, warmup_steps=50)
    assert Length(100).of(config) == OptimizerConfig(steps=100, warmup_steps=10)
    assert Length(1000).of(config).warmup_steps == 50
    assert Length(100, looks=8).look_every == 13 and Length(14).look_every == 2 and Length(3).look_every == 1


def test_time_over_all_sittings(tmp_path: Path) -> None:
    """What came after the newest checkpoint is done again, and does not count."""
    assert spent(tmp_path) == 0 and deadline(tmp_path, None) is None
    (tmp_path / "checkpoint" / "step-00000020").mkdir(parents=True)
    rows = [{"step": 0, "event": "runtime"}, *({"step": step, "seconds": step / 4} for step in (10, 20, 30))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert spent(tmp_path) == 5
    assert deadline(tmp_path, 12) == pytest.approx(time.monotonic() + 7, abs=0.5)
    assert deadline(tmp_path, 2) == pytest.approx(time.monotonic(), abs=0.5)
