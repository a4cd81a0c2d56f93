"""The examples of the contributing guide run as they stand, and the documents name what exists."""

import re
from pathlib import Path

import pytest

from dcube import config, settings
from dcube.baselines import registry
from dcube.cli import app
from dcube.data import sources

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)
PAGES = ("README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/paper_map.md", "docs/benchmark.md")


@pytest.mark.parametrize("block", BLOCKS, ids=["loss", "backbone", "source", "baseline"])
def test_example_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SOURCES", list(sources.SOURCES))  # the example registers one
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_documents_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(settings._all_paths())
    sections = "|".join(config.Experiment.model_fields)
    for name in re.findall(rf"\b((?:{sections})(?:\.[a-z_]+)+)(?==|`)", text):
        if not name.endswith((".py", ".yaml", ".csv")):
            assert name in paths, f"{page} names the setting {name}, which does not exist"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_verbs_in_the_documents_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"`?dcube ([a-z]+)", text)) <= verbs
