"""The house has one way through: imports go upwards only, and no file or function holds two ideas."""

import ast
from pathlib import Path

import pytest

import dcube

ROOT = Path(dcube.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ORDER = (
    *("errors", "files", "progress", "lock", "sections", "networks", "config", "idle", "settings"),
    *("data", "evaluation", "training", "diffusion", "features", "classifier", "baselines"),
    *("experiments", "report"),
    *("tables", "environment", "runs", "opening", "checks", "inputs", "audit", "inference", "external", "stages"),
    *("samples", "explanation", "preparing", "pretraining", "crossval", "dryrun"),
    *("reproduce", "benchmark"),
    *("api", "console", "options", "prediction", "looking_cli", "studies_cli", "cli", "__main__"),
)
HEAVY = {"torch", "torchvision", "timm", "sklearn", "skimage", "matplotlib", "accelerate", "scipy"}
LIGHT = (
    *("__init__", "errors", "files", "progress", "lock", "sections", "networks", "config", "idle", "settings"),
    *("environment", "runs", "opening", "preparing", "api", "console", "options", "prediction"),
    *("looking_cli", "studies_cli", "cli", "__main__"),
)
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 300, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST, path: Path) -> set[str]:
    """Full names of the imported modules; for `from dcube import x` that of x."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write it out"
            found |= {f"dcube.{alias.name}" for alias in node.names} if node.module == "dcube" else {node.module or ""}
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_from_those_above_it(path: Path) -> None:
    tree, here = ast.parse(path.read_text(encoding="utf-8")), room_of(path)
    rooms = {name.split(".")[1] for name in imports_of(tree, path) if name.startswith("dcube.")} - {here}
    if here in ("__init__", "recipes"):
        assert not rooms
        return
    assert here in ORDER, f"{here} has no place in the order of imports"
    below = {room for room in rooms if room in ORDER and ORDER.index(room) > ORDER.index(here)}
    assert not below, f"{path} imports from {below}, which stand below {here}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_one_idea_per_file_and_function(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LINES_OF_A_FUNCTION, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) in LIGHT], ids=name_of)
def test_heavy_libraries_wait_until_they_are_needed(path: Path) -> None:
    top = ast.Module([node for node in ast.parse(path.read_text(encoding="utf-8")).body], [])
    top.body = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {name.split(".")[0] for name in imports_of(top, path)} & HEAVY


def test_only_the_runtime_imports_accelerate_and_nobody_pickle() -> None:
    for path in FILES:
        found = {name.split(".")[0] for name in imports_of(ast.parse(path.read_text(encoding="utf-8")), path)}
        assert "pickle" not in found, path
        assert "accelerate" not in found or name_of(path) == "training/runtime", path
