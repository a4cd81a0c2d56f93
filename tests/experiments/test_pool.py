"""Units side by side: their processes do not outlive the one that started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcube.experiments.pool import run_units

SCRIPT = """
import sys
from pathlib import Path
from dcube.experiments.pool import run_units
from test_pool import linger
if __name__ == "__main__":
    run_units(linger, [Path(sys.argv[1]) / "a", Path(sys.argv[1]) / "b"], jobs=2)
"""


def linger(file: Path) -> None:
    """Leave the number of this process, then outlast the test."""
    file.write_text(str(os.getpid()))
    time.sleep(120)


def fail(number: int) -> None:
    if number == 1:
        raise ValueError("unit 1")


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path], env=environment)
    until = time.monotonic() + 60
    while not all((tmp_path / name).is_file() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < until and child.poll() is None
        time.sleep(0.1)
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    assert all(map(running, workers))
    child.kill()
    child.wait()
    until = time.monotonic() + 20
    while any(map(running, workers)):
        assert time.monotonic() < until, "a worker goes on alone"
        time.sleep(0.1)


def test_a_failure_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="unit 1"):
        run_units(fail, [0, 1], jobs=1)
    assert capsys.readouterr().out == "1/2 0\n"
