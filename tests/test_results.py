"""The figures in the documents are those of the files in results/."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("script", ["results_table.py", "benchmark_table.py", "step1_table.py"])
def test_the_tables_are_the_ones_that_the_scripts_make(script: str) -> None:
    result = subprocess.run([sys.executable, str(DOCS / script), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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
        "minutes_step1": 0.0, "cut": 0, "parameters": 5_000_000, "milliseconds": 1.5, "weights": "RANDOM: no network",
        "random": True, "configuration": "lr=0.001", "tried": [{}, {}],
    }  # fmt: skip
    failed = {"model": "vit_b16", "title": "ViT-B/16", "failed": "no"}
    rows = [{"model": "vit_ti16", "title": "ViT-Ti/16", **common}, failed]
    found = {"split": "test", "n": 9, "groups": 7, "train_images": 30, "reference": None, "systems": rows}
    plan = {
        "settings": {"diffusion": {"image_size": 64}}, "seeds": [0], "budget": "3 min", "recipes": "equal", "tries": 2,
        "step1_share": 0.5, "long": None, "share": None, "rarest": None, "test_evaluations": 1,
    }  # fmt: skip
    held = {"plan": plan, "results": {"sets": {"lung": found}, "ranks": None}}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "benchmark.json").write_text(json.dumps(held))
    text = page.section(tmp_path)
    assert "| ViT-B/16 | 78.55 / 63.31 | 66.90 / 51.88 | 85.21 / 86.50 | ViT-Ti/16 | 91.0 / 82.0 |" in text
    assert "### full" in text and "**RANDOM**: no network" in text and "failed: no" in text
