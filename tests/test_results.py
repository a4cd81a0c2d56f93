"""The figures in the documents are those of the files in results/."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcube.benchmark import check_models_of, make_terms
from dcube.config import Experiment
from dcube.report.studies import scarcity_figure

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("script", ["results_table.py", "benchmark_table.py", "step1_table.py"])
def test_the_tables_are_the_ones_that_the_scripts_make(script: str) -> None:
    result = subprocess.run([sys.executable, str(DOCS / script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_commands_of_the_trials_are_ones_that_the_program_takes() -> None:
    script = [sys.executable, str(DOCS / "benchmark_trials.py")]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        options = dict(zip(words, words[1:], strict=False))
        overrides = [value for key, value in zip(words, words[1:], strict=False) if key == "--set"]
        terms = make_terms("small", overrides, size=int(options["--size"]), budget=options["--budget"])
        assert check_models_of([options["--models"]], terms) and terms.tries > int(options["--tries"])


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "repeats": [value]}


def test_the_page_of_the_benchmark_with_and_without_results(tmp_path: Path) -> None:
    known = importlib.util.spec_from_file_location("benchmark_table", DOCS / "benchmark_table.py")
    assert known is not None and known.loader is not None
    page = importlib.util.module_from_spec(known)
    known.loader.exec_module(page)
    empty = page.section(tmp_path / "none")
    assert page.NOTHING in empty and "| ViT-B/16 | 78.55 / 63.31 |" in empty and "RADIO + LoRA | 87.20 / 78.50" in empty

    names = "accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_auroc", "ece"
    common = {
        "metrics": dict(zip(names, map(figure, (0.91, 0.5, 0.5, 0.82, 0.5, 0.5)), strict=True)), "minutes": 3.0,
        "fewest": 12, "minutes_step1": 0.0, "cut": 0, "parameters": 5_000_000, "milliseconds": 1.5,
        "weights": "RANDOM: no network", "random": True, "configuration": "lr=0.001", "tried": [{}, {}], "tuned_on": 0,
    }  # fmt: skip
    failed = {"model": "vit_b16", "title": "ViT-B/16", "failed": "no", "tuned_on": 0}
    rows = [{"model": "vit_ti16", "title": "ViT-Ti/16", **common}, failed]
    found = {
        "split": "test", "openings": 1, "n": 9, "groups": 7, "train_images": [28, 30], "train_rarest": [3, 3],
        "reference": None, "systems": rows,
    }  # fmt: skip
    settings = Experiment(diffusion={"image_size": 64}).model_dump(mode="json")  # type: ignore[arg-type]
    plan = {
        "settings": settings, "seeds": [0], "budget": "3 min", "recipes": "equal", "tries": 2,
        "step1_share": 0.5, "long": None, "share": None, "rarest": None, "test_evaluations": 1,
        "machine": "a machine",
    }  # fmt: skip
    held = {"plan": plan, "results": {"sets": {"lung": found}, "ranks": None}}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "benchmark.json").write_text(json.dumps(held))
    text = page.section(tmp_path)
    assert "| ViT-B/16 | 78.55 / 63.31 | 66.90 / 51.88 | 85.21 / 86.50 | ViT-Ti/16 | 91.0 / 82.0 RANDOM |" in text
    assert "| ours | lung (64 px, 3 min) |" in text and "28 to 30 training images" in text and "only 12 steps" in text
    assert "Fewer training images" not in text and "### full" in text
    assert "**RANDOM**: no network" in text and "failed: no" in text

    closed = {"plan": plan | {"test_evaluations": 0}, "results": held["results"]}
    (tmp_path / "full" / "benchmark.json").write_text(json.dumps(closed))
    assert "91.0 / 82.0" not in page.section(tmp_path), "figures of a validation split do not stand beside the paper's"

    (tmp_path / "full" / "benchmark.json").write_text(json.dumps(held))
    for share, rarest in ((0.1, None), (0.25, None), (None, 0.1)):
        scarce = {"plan": plan | {"share": share, "rarest": rarest}, "results": {"sets": {"lung": found}}}
        (tmp_path / f"{share} {rarest}").mkdir()
        (tmp_path / f"{share} {rarest}" / "benchmark.json").write_text(json.dumps(scarce))
    parts = page.kept(page.read(tmp_path))
    assert list(parts) == ["all", "25%", "10%", "10% of the rarest"]
    assert "scarcity.svg" in page.section(tmp_path)
    drawn = scarcity_figure(parts)
    assert drawn.count("<svg") == 1 and "ViT-Ti/16" in drawn and "10% of the rarest" in drawn
