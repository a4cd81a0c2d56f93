"""`dcube reproduce`: a claim of the paper, or of ours, as one command over any data."""

import re
from collections.abc import Sequence
from functools import partial
from os.path import abspath, basename
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np

from dcube.checks import check_models
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.sources import open_images
from dcube.data.store import Store, cached_store
from dcube.errors import InputError
from dcube.experiments.step1 import QUARTER, TRAINED, Unit, study
from dcube.experiments.step1_summary import markdown, summarise
from dcube.files import atomic_write, file_digest, read_json, write_json, write_text
from dcube.inputs import check_initial_weights
from dcube.lock import folder_lock
from dcube.preparing import refuse_inside
from dcube.report.studies import differences_figure
from dcube.settings import check_of_a_comparison, load_experiment
from dcube.training.state import load_weights

# what a laptop without bf16 has: about 5 minutes of step 1 and as many of step 2 on one core
STEP1_BUDGET = (
    "diffusion.image_size=32", "diffusion.optimizer.steps=300",
    "classifier.cnn_size=96", "classifier.optimizer.steps=150", "classifier.optimizer.batch_size=16",
    "classifier.second_reader=0", "classifier.covariance_readers=[]",  # they are asked for beside
    "diffusion.sample_every=1000000", "runtime.threads=1",
)  # fmt: skip


def study_settings(recipe: str, overrides: Sequence[str]) -> Experiment:
    """A recipe at the budget of the study of step 1, changed by the caller's `key.path=value`."""
    check_of_a_comparison(overrides)
    return load_experiment(recipe, [*STEP1_BUDGET, *overrides])


def reproduce_step1(
    data: Sequence[str | Path], out: Path, settings: Experiment, *, folds: int = 3, seeds: Sequence[int] = (0, 1),
    jobs: int = 1, timesteps: tuple[int, ...] = (50,), whole: bool = True, quarter: bool = True,
    unlabelled: bool = False, relatives: bool = True, test: bool = False, share: float = QUARTER, draws: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The study of step 1 on every image set of `data`; continues where it was interrupted.

    Leaves OUT/step1.json, step1.md, step1.svg, a sample grid per set, and the cells. A given test split is not touched
    but with `test`: when all folds are done, it is predicted after training on all other images. Returns what
    step1.json holds. InputError where OUT holds a study with other settings or of other images.
    """
    check_models(settings, cnn=True)
    if wrong := [t for t in timesteps if not 0 <= t < settings.diffusion.timesteps]:
        raise InputError(f"The timestep {wrong[0]} does not lie in 0 .. {settings.diffusion.timesteps - 1}.")
    stores = named_stores(data, settings, out)
    asked = {
        "settings": settings.model_dump(mode="json", exclude={"seed", "runtime"}), "folds": folds,
        "timesteps": list(timesteps), "share": share, "data": {name: store.key for name, store in stores.items()},
    }  # fmt: skip
    if settings.diffusion.init:
        asked["init"] = _initial(settings, out, stores, test)
    if (weights := Path(settings.classifier.cnn_weights)).is_file():
        asked["cnn"] = file_digest(weights)
    _check_folder(out, asked)
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        before = read_json(out / "plan.json")["data"] if (out / "plan.json").exists() else {}
        write_json(out / "plan.json", asked | {"data": before | {name: store.key for name, store in stores.items()}})
        units = study(
            stores, settings, out, folds=folds, seeds=seeds, jobs=jobs, timesteps=timesteps, whole=whole,
            quarter=quarter, unlabelled=unlabelled, relatives=relatives, test=test, part=share, draws=draws,
        )  # fmt: skip
        return _write(out, asked, units, settings.evaluation.model_dump(include={"bootstrap", "level"}))


def _write(out: Path, asked: dict[str, Any], units: Sequence[Unit], how_sure: dict[str, Any]) -> dict[str, Any]:
    summary = summarise(units, **how_sure)
    write_json(out / "step1.json", {"plan": asked, "results": summary})
    write_text(out / "step1.md", markdown(summary, asked["share"]))
    write_text(out / "step1.svg", differences_figure(summary))
    for unit in _first_of_each(units):
        for grid in sorted((unit.directory / "step1" / TRAINED / "samples").glob("*.png"))[-1:]:  # of its last step
            atomic_write(out / f"samples-{unit.name}.png", partial(copyfile, grid))
    return summary


def named_stores(data: Sequence[str | Path], settings: Experiment, out: Path) -> dict[str, Store]:
    """The prepared images of several sets by the names of their folders; InputError where two have the same, and where
    the results of a study, `out`, would lie among the images.
    """
    stores: dict[str, Store] = {}
    for source in data:
        images = open_images(str(source), settings.seed)
        refuse_inside(out, str(source))
        name = re.sub(r"[^\w.-]+", "-", basename(abspath(str(source).rstrip("/:")))) or "images"
        if name in stores:
            raise InputError(f"Two image sets are called '{name}'; rename one of the folders.")
        stores[name] = cached_store(images, settings.data)
    return stores


def _initial(settings: Experiment, out: Path, stores: dict[str, Store], test: bool) -> str:
    """Digest of `diffusion.init`; once a study has begun in OUT, the file may go. InputError where there is none, or
    where it has seen images that the study holds out: each of the folds' is held out once.
    """
    init, plan = Path(str(settings.diffusion.init)), out / "plan.json"
    if not init.is_file() and plan.is_file() and "init" in (held := read_json(plan)):
        return str(held["init"])
    check_initial_weights(settings)
    seen = load_weights(init)[1].get("seen", {})
    for name, store in stores.items():
        given = np.array(store.given_splits) == "test"
        if known := ImageData(store, np.where(given & (not test), "left out", "test")).seen_by(seen):
            raise InputError(
                f"diffusion.init={init} was trained on {known} images of {name} that the study holds out; give weights"
                " of other images."
            )
    return file_digest(init)


def _check_folder(out: Path, asked: dict[str, Any]) -> None:
    """A folder holds one study: its cells would otherwise mix two settings."""
    file = out / "plan.json"
    if not file.exists() and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds other files; give a new or empty folder as --out.")
    if file.exists():
        held = read_json(file)
        # what a folder of an older version does not say
        older = {"share": QUARTER, "init": asked.get("init"), "cnn": asked.get("cnn")}
        if any((older | held).get(k) != v for k, v in asked.items() if k != "data"):
            raise InputError(f"{out} holds a study with other settings; give another --out, or the same settings.")
        if changed := [name for name, key in asked["data"].items() if held["data"].get(name, key) != key]:
            raise InputError(f"{out} holds a study of other images called '{changed[0]}'; give another --out.")


def _first_of_each(units: Sequence[Unit]) -> list[Unit]:
    found: dict[str, Unit] = {}
    for unit in units:
        found.setdefault(unit.name, unit)
    return list(found.values())
