"""From a recipe and `key.path=value` overrides to an experiment, with errors that name the nearest keys."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.idle import owner, told


def recipe_names() -> list[str]:
    """Names of the recipes that come with the program."""
    return sorted(p.name[:-5] for p in resources.files("dcube.recipes").iterdir() if p.name.endswith(".yaml"))


def load_experiment(recipe: str, overrides: list[str] | None = None) -> Experiment:
    """Read a recipe (a shipped name or a YAML file) and apply `key.path=value` overrides.

    Raises InputError for an unknown recipe, a misspelt key (naming its nearest neighbours) or a bad value.
    """
    if recipe in recipe_names():
        text = resources.files("dcube.recipes").joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    elif recipe.endswith((".yaml", ".yml")) and Path(recipe).is_file():
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"The recipe {recipe} is not UTF-8 text; save it as that.") from error
    else:
        raise InputError(
            f"There is no recipe '{recipe}'{_nearest(recipe, recipe_names())};"
            f" choose one of {', '.join(recipe_names())}, or give a .yaml file."
        )
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"The recipe {recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"The recipe {recipe} must be a YAML mapping of sections.")
    tree = {"recipe": Path(recipe).stem} | {name: part for name, part in tree.items() if part is not None}
    for override in overrides or []:
        _apply(tree, override)
    return parse_experiment(tree)


def resolve(recipe: str, overrides: Sequence[str], seed: int | None, device: str | None) -> Experiment:
    """The experiment of a recipe with everything the caller changes; a change without effect is told."""
    extra = [f"seed={seed}"] if seed is not None else []
    changes = [*overrides, *extra, *([f"runtime.device={device}"] if device else [])]
    settings = load_experiment(recipe, changes)
    told(settings, changes)
    return settings


def override(settings: Experiment, changes: Sequence[str]) -> Experiment:
    """The same experiment with `key.path=value` changes, checked as `load_experiment` checks them."""
    tree = settings.model_dump(mode="json")
    for change in changes:
        _apply(tree, change)
    return parse_experiment(tree)


def parse_experiment(tree: dict[str, Any]) -> Experiment:
    """Validate a tree of settings; InputError with every fault in one sentence."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise InputError("The settings are not valid: " + "; ".join(map(_fault, error.errors())) + ".") from error


def _fault(fault: Any) -> str:
    path = [part for part in fault["loc"] if isinstance(part, str)]
    if fault["type"] == "extra_forbidden":
        known = _fields(path[:-1])
        return f"there is no key '{'.'.join(path)}'{_nearest(path[-1], known, '.'.join(path[:-1]))}"
    where = ".".join(path)
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict | BaseModel) else f" (given: {fault['input']!r})"
    return f"{where}: {message}{given}" if where else message


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise InputError(f"'--set {override}' is not of the form key.path=value, for example diffusion.image_size=64.")
    for depth, part in enumerate(path):
        known = _fields(path[:depth])
        if part not in known:
            near = _nearest(part, known, ".".join(path[:depth]))
            raise InputError(f"There is no setting '{key.strip()}'{near}.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"The value in '--set {override}' is not valid YAML.") from error
    node = tree
    for part in path[:-1]:
        node[part] = node = node.get(part) or {}
    if path[-1] in ("steps", "epochs") and path[-2:-1] == ["optimizer"]:  # one replaces the other
        node.pop("epochs" if path[-1] == "steps" else "steps", None)
    node[path[-1]] = parsed


def _fields(path: list[str]) -> list[str]:
    """Names of the settings below a path; empty where it leads to a plain value."""
    model: type[BaseModel] = Experiment
    for part in path:
        field = model.model_fields.get(part)
        kind = field.annotation if field else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not near:  # a key that stands in another section
        near = [path for path in _all_paths() if path.rsplit(".", 1)[-1] == name][:3]
        prefix = ""
    dotted = [f"{prefix}.{n}" if prefix else n for n in near]
    return f" (did you mean {' or '.join(dotted)}?)" if dotted else ""


def _all_paths(path: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name in _fields(list(path)):
        found += [".".join((*path, name))] + _all_paths((*path, name))
    return found


def check_left_out(settings: Experiment, classes: Sequence[str]) -> None:
    """InputError where `evaluation.without` names a class that is not there, or leaves fewer than two."""
    for left_out in settings.evaluation.without:
        if set(left_out) - set(classes) or len(set(classes) - set(left_out)) < 2:
            raise InputError(
                f"evaluation.without={list(left_out)} must name classes of the data ({', '.join(classes)})"
                " and leave at least two."
            )


def check_of_a_comparison(overrides: Sequence[str]) -> None:
    """InputError for changes of a recipe that only a run heeds: benchmarks and studies have floors of their own."""
    for change in overrides:
        if change.startswith(("evaluation.without=", "evaluation.floors=")):
            raise InputError(f"{change.split('=')[0]} changes what `dcube fit` shows, and nothing here; leave it out.")


def changed_settings(old: Experiment, new: Experiment) -> list[str]:
    """Every differing setting as `key.path: old -> new`, but for those that have no effect in either."""

    def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in tree.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    different = [
        key for key in before | after
        if before.get(key) != after.get(key) and not (owner(old, key) and owner(new, key))
    ]  # fmt: skip
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in different]
