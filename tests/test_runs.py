"""The run folder: lock, settings, data, stages."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.opening import change_settings, opened
from dcube.runs import OUTPUTS, Run
from dcube.settings import load_experiment

HOLDER = """
import os, sys, time
from dcube.runs import Run
with Run(sys.argv[1]).locked():
    if len(sys.argv) > 2 and os.fork() == 0:  # a worker that outlives its parent
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def create(path: Path, settings: Experiment | None = None, key: str = "k1", name: str = "scans", **more: bool) -> Run:
    store = path.parent / "store"
    store.mkdir(exist_ok=True)
    settings = settings or load_experiment("small")
    return Run.create_or_open(path, settings, store=store, store_key=key, data_name=name, device="cpu", **more)


def test_create_writes_what_a_run_is_made_from(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert run.settings() == load_experiment("small")
    environment = json.loads(run.environment.read_text())
    assert {"dcube", "python", "platform", "device", "packages", "git_commit", "commands"} <= set(environment)
    assert run.store() == (tmp_path / "store").resolve() and run.store_key() == "k1"
    create(tmp_path / "run")
    assert len(json.loads(run.environment.read_text())["commands"]) == 2


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "scan.png").touch()
    with pytest.raises(InputError, match=r"holds other files \(scan\.png\)"):
        create(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        create(tmp_path / "scan.png")


def test_changed_settings_are_named_unless_restart(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    other = load_experiment("small", ["classifier.dropout=0.3"])
    with pytest.raises(InputError, match=r"classifier\.dropout: 0\.5 -> 0\.3.*--restart"):
        create(tmp_path / "run", other)
    run.mark_done("select", "a")
    run.selection.write_text("{}")
    create(tmp_path / "run", other, restart=True)  # what stands is kept: the stages compare their own inputs
    assert run.settings() == other and run.is_done("select", "a")
    create(tmp_path / "run", other, restart=True)  # the same command again: it goes on
    assert run.selection.exists() and run.is_done("select", "a")
    run.ended()
    create(tmp_path / "run", other, restart=True)  # nothing changed: everything anew
    assert not run.selection.exists() and not run.is_done("select", "a")
    run.mark_done("select", "b")
    run.selection.write_text("{}")
    create(tmp_path / "run", other, restart=True)  # interrupted on the way and repeated
    assert run.is_done("select", "b")
    fresh = create(tmp_path / "fresh", restart=True)
    fresh.mark_done("select", "a")
    fresh.selection.write_text("{}")
    create(tmp_path / "fresh", restart=True)
    assert fresh.is_done("select", "a"), "a restart with nothing to restart goes on too"


def test_what_was_built_on_other_inputs_goes(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for stage in ("diffuse", "select", "classify"):
        run.begin(stage, "a")
        run.mark_done(stage, "a")
    run.classifier.mkdir()
    run.begin("diffuse", "a")
    assert run.classifier.exists() and run.is_trained
    run.begin("select", "b")
    assert not run.classifier.exists() and not run.is_trained
    run.classifier.mkdir()  # begun with other inputs, then stopped
    run.begin("classify", "c")
    run.begin("classify", "c")
    assert run._read_stamps()["begun"] == {"diffuse": "a", "select": "b", "classify": "c"}


def test_runtime_may_change(tmp_path: Path) -> None:
    create(tmp_path / "run")
    run = create(tmp_path / "run", load_experiment("small", ["runtime.checkpoint_seconds=5"]))
    assert run.settings().runtime.checkpoint_seconds == 5


def test_run_of_other_data_names_both(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with pytest.raises(InputError, match=r"'scans' \(key k1\), not to 'others' \(key k2\)"):
        create(tmp_path / "run", key="k2", name="others")
    assert create(tmp_path / "run", key="k2", name="others", restart=True).store_key() == "k2"


def test_store_that_is_gone(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    (tmp_path / "store").rmdir()
    with pytest.raises(InputError, match="'scans' are no longer at"):
        run.store()


def test_stage_counts_as_done_only_with_the_same_inputs_and_its_result(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    run.mark_done("diffuse", "a")
    assert not run.is_done("diffuse", "a")  # stamp without weights
    run.diffusion.mkdir()
    (run.diffusion / "model.safetensors").touch()
    assert run.is_done("diffuse", "a") and not run.is_done("diffuse", "b")
    run.clear("diffuse")
    assert not run.diffusion.exists() and not run.is_done("diffuse", "a")
    run.clear("diffuse")  # clearing twice is fine


def test_every_stage_can_be_cleared(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    for stage in OUTPUTS:
        run.clear(stage)


def test_looks_at_the_test_split_are_counted_over_restarts(tmp_path: Path) -> None:
    run = create(tmp_path / "run")
    assert run.test_evaluations == 0 and run.count_test_evaluation("a", again=False) == 1
    assert run.count_test_evaluation("a", again=False) == 1, "the same classifier, interrupted"
    with pytest.raises(InputError, match=r"1 time\(s\).*--again"):
        run.count_test_evaluation("b", again=False)
    run.clear("evaluate")
    assert create(tmp_path / "run", restart=True).test_evaluations == 1
    assert run.count_test_evaluation("b", again=True) == 2
    other = load_experiment("small", ["classifier.dropout=0.3"])
    with pytest.raises(InputError, match=r"2 time\(s\)"):
        run.refuse_second_look(other, "k1")
    with pytest.raises(InputError, match=r"2 time\(s\)"):
        run.refuse_second_look(run.settings(), "k2")
    run.refuse_second_look(run.settings(), "k1")


def test_one_stage_may_change_its_own_settings_and_later_ones(tmp_path: Path) -> None:
    create(tmp_path / "run")
    with opened(tmp_path / "run", "select", ["features.alpha=0.1"], device="cpu") as run:
        assert run.settings().features.alpha == 0.1 and run.settings().runtime.device == "cpu"
        with pytest.raises(InputError, match=r"diffusion\.image_size.*before 'select'"):
            change_settings(run, "select", ["diffusion.image_size=32"])
        with pytest.raises(InputError, match="seed"):
            change_settings(run, "evaluate", ["seed=4"])
    with pytest.raises(InputError), opened(tmp_path / "run", "select", ["features.alpha=0.2"]):
        raise InputError("refused")
    assert run.settings().features.alpha == 0.1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("orphan", [[], ["orphan"]])
def test_a_second_process_is_told_and_a_kill_frees_the_lock(tmp_path: Path, orphan: list[str]) -> None:
    run = create(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(run.path), *orphan], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            with pytest.raises(InputError, match=rf"(?i)another process \(pid {holder.pid}\)"), run.locked():
                pass
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            holder.stdout.close()  # a surviving worker still has the other end
        with run.locked(), run.locked():  # free again, and free to nest
            pass
