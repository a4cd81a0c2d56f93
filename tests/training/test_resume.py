"""Killed at any moment and continued, a training ends with the weights of an uninterrupted one, bit for bit."""

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import resume_child
import torch

from dcube.data.dataset import ImageData
from dcube.training.log import read_log
from dcube.training.state import load_weights

# what must be there when the process is killed: beginnings, middles and ends of both steps
MOMENTS = (
    ("diffusion", 0), ("diffusion", 7), ("diffusion", 16), ("classifier", 0), ("classifier", 5), ("classifier", 15),
)  # fmt: skip


def start(data: ImageData, run: Path, dtype: str) -> BaseProcess:
    """A fresh process; the server it is forked from has done the imports, and nothing else."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # Python 3.11's server needs it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resume_child"])
    arguments = (str(data.store.directory), data.splits.tolist(), str(run), dtype)
    process = context.Process(target=resume_child.fit, args=arguments)
    process.start()
    return process


def reached(run: Path, stage: str) -> int:
    """The step of the newest checkpoint; -1 before the first."""
    names = [path.name for path in (run / stage / "checkpoint").glob("step-*")]
    return max((int(name.removeprefix("step-")) for name in names), default=-1)


def kill_at(process: BaseProcess, run: Path, stage: str, step: int) -> bool:
    """SIGKILL as soon as a checkpoint of at least `step` is seen; False where the process was quicker."""
    until = time.monotonic() + 60
    while process.is_alive() and reached(run, stage) < step:
        assert time.monotonic() < until
        time.sleep(0.002)
    if process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_killed_and_continued_equals_uninterrupted(data: ImageData, tmp_path: Path, dtype: str) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    finish(start(data, whole, dtype))
    kills = 0
    for stage, step in MOMENTS:
        in_training = kill_at(start(data, pieces, dtype), pieces, stage, step)
        kills += in_training and reached(pieces, stage) < resume_child.STEPS
    assert kills >= 3, "kills must fall into the trainings"
    finish(start(data, pieces, dtype))

    for file in ("diffusion/model.safetensors", "classifier/model.safetensors"):
        (expected, about), (found, also) = load_weights(whole / file), load_weights(pieces / file)
        assert about == also
        assert expected.keys() == found.keys()
        different = [name for name in expected if not torch.equal(expected[name], found[name])]
        assert not different, f"{file}: {different[:3]}"
    for stage in ("diffusion", "classifier"):
        events = [[r for r in read_log(run / stage / "log.jsonl") if "event" in r] for run in (whole, pieces)]
        assert events[0] == events[1] and events[0], "validations and samples are logged once each"
    assert not list(pieces.rglob("*.tmp*")), "nothing half-written is left"
    assert not list(pieces.rglob("*.f16"))


def test_seed_and_data_determine_the_weights(data: ImageData, tmp_path: Path) -> None:
    """The comparison above can fail: another seed gives other weights."""
    from dcube.diffusion.train import train_diffusion

    settings = resume_child.experiment("fp32")
    one, _ = train_diffusion(data, settings, tmp_path / "a")
    two, _ = train_diffusion(data, settings.model_copy(update={"seed": 1}), tmp_path / "b")
    same = zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True)
    assert not any(torch.equal(a, b) for a, b in same)
