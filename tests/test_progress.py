"""Progress where nobody watches: few plain lines, with the time left counted from this process's own work."""

import pytest

from dcube import progress as module
from dcube.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_at_tenths_with_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 1000, start=500) as advance:
        for done in range(501, 1001):
            clock[0] += 0.5
            advance(done, f"loss {done}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 560/1000, 3:40 left, loss 560"  # 30 s have passed
    assert lines[-1] == "training: 1000/1000, 4:10 taken, loss 1000"
    assert len(lines) <= 12


def test_short_work_says_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("features", 3) as advance:
        for done in (1, 2, 3):
            advance(done)
    assert capsys.readouterr().err == "features: 3/3, 0:00 taken\n"


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress("features", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("features", 2) as advance:
        advance(1, "half")
        advance(2, "all")
    assert "2/2" in capsys.readouterr().err
