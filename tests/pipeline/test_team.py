"""Several processes, as torchrun starts them, train one run together; the first of them alone does the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import assert_same_weights, steps
from tiny_fit import PHANTOM, done, metrics, refused

from dcube.files import read_json
from dcube.training.log import read_log
from dcube.training.state import load_weights


def together(*arguments: object, processes: int = 2, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`dcube ARGUMENTS` by so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "dcube.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (result.returncode == 0) == (status == 0), result.stderr
    return result


def losses_of(stage: Path) -> list[dict[str, Any]]:
    return [row for row in read_log(stage / "log.jsonl") if "loss" in row]


# eq. 4 as a sum over the batch; a CNN with a layer behind its map, which gets no gradient
SETTINGS = [
    word
    for setting in ("diffusion.contrastive.distance=paper", "classifier.cnn=test_convnext.r160_in1k")
    for word in ("--set", setting)
]


@pytest.fixture(scope="module")
def team_run(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run that two processes made."""
    out = tmp_path_factory.mktemp("team") / "run"
    result = together("fit", PHANTOM, "--out", out, "--recipe", recipe, *SETTINGS)
    assert result.stdout.count("test split") == 1, "the helpers are silent"
    return out


def test_two_processes_train_as_one(team_run: Path, recipe: Path, tmp_path: Path) -> None:
    """Step 1 normalises no batch: the mean of two halves' gradients is the gradient."""
    alone = tmp_path / "run"
    done("fit", PHANTOM, "--out", alone, "--recipe", recipe, *SETTINGS)
    (a, about), (b, also) = (load_weights(run / "diffusion/model.safetensors") for run in (team_run, alone))
    assert about == also
    one, other = ([row["grad_norm"] for row in losses_of(run / "diffusion")] for run in (team_run, alone))
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one == pytest.approx(other, rel=0.02)  # AdamW blows rounding up where a gradient is nothing else
    apart, length = (sum(float(d.square().sum()) for d in c) for c in ((a[n] - b[n] for n in a), b.values()))
    assert apart < 1e-5 * length
    assert (team_run / "split.csv").read_bytes() == (alone / "split.csv").read_bytes()
    for stage in ("diffusion", "classifier"):
        one, other = (losses_of(run / stage) for run in (team_run, alone))
        assert [row["step"] for row in one] == [row["step"] for row in other], "one process writes the log"


def test_the_first_process_alone_does_the_rest(team_run: Path) -> None:
    assert metrics(team_run)["test_evaluations"] == 1
    assert len(read_json(team_run / "environment.json")["commands"]) == 1
    assert (team_run / "report.html").is_file()
    assert not list(team_run.rglob("*.tmp*")), "nothing half-written is left"


def test_an_interrupted_team_goes_on(team_run: Path, recipe: Path, tmp_path: Path) -> None:
    fit = ("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe, *SETTINGS)
    together(*fit, "--max-minutes", 0)
    assert steps(tmp_path / "run", "diffusion") == 0
    together(*fit)
    assert_same_weights(tmp_path / "run", team_run)
    assert json.dumps(metrics(tmp_path / "run")) == json.dumps(metrics(team_run))


def test_a_team_is_refused_in_one_sentence(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uneven = ("--set", "diffusion.optimizer.batch_size=7")
    result = together("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe, *uneven, status=2)
    assert "diffusion.optimizer.batch_size=7 does not divide among 2 processes" in result.stderr
    assert "dcube/stages.py" not in result.stderr, "no traceback of ours"
    assert not (tmp_path / "run").exists(), "found before anything is made"
    dry = together("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe, "--dry-run", status=2)
    assert "run it without torchrun" in dry.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun --no-python dcube fit" in refused("fit", PHANTOM, "--out", tmp_path / "run", "--recipe", recipe)
    assert "without torchrun" in refused("benchmark", PHANTOM, "--models", "majority", "--out", tmp_path / "bench")
    study = ("reproduce", "table2", "--data", PHANTOM, "--out", tmp_path / "study")
    assert "without torchrun" in refused(*study)
