"""Every name on the paper map exists, and every equation has its line."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from dcube.settings import load_experiment, recipe_names

MAP = (Path(__file__).parent.parent / "docs" / "paper_map.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(dcube[\w.]*:\w+)`", MAP))))
def test_name_exists(name: str) -> None:
    module, attribute = name.split(":")
    assert (getattr(import_module(module), attribute).__doc__ or "").strip(), f"{name} has no docstring"


def test_every_equation_and_recipe_is_there() -> None:
    rows = [line.split("|")[1] for line in MAP.splitlines() if line.startswith("| eq.")]
    assert {int(n) for row in rows for n in re.findall(r"\d+", row)} == set(range(1, 11))
    assert set(re.findall(r"recipes/([\w-]+)\.yaml", MAP)) == set(recipe_names()) - {"demo", "quick", "small"}


def test_settings_it_names_exist() -> None:
    overrides = ["diffusion.contrastive.distance=paper", "features.select=most_gaussian", "features.input=noised"]
    assert all(override.split("=")[0] in MAP for override in overrides)
    load_experiment("small", overrides)
