"""One tiny run, fitted once for all tests of the pipeline."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_fit import PHANTOM, done, write_manifest, write_recipe


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared images go here, not into the home folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCUBE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A finished run on phantoms; not to be changed."""
    out = tmp_path_factory.mktemp("fitted") / "run"
    result = done("fit", PHANTOM, "--out", out, "--recipe", recipe)
    assert "macro-F1" in result.stdout and "statistics" in result.stdout
    return out


@pytest.fixture
def copied(fitted: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(fitted, tmp_path / "copied"))


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest with groups and a test split."""
    return write_manifest(tmp_path_factory.mktemp("scans") / "scans")
