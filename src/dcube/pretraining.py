"""Step 1 on several sets of images without their labels, for others to begin with (`diffusion.init`)."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcube import stages
from dcube.api import store_of
from dcube.checks import check_models
from dcube.data.dataset import ImageData
from dcube.data.folds import splits_of
from dcube.data.joint import JointData, set_names
from dcube.data.sources import describe
from dcube.data.unlabelled import is_unlabelled, open_unlabelled, unlabelled_splits, without_held_out
from dcube.errors import InputError
from dcube.files import digest
from dcube.inputs import check_initial_weights
from dcube.runs import Run
from dcube.settings import resolve
from dcube.tables import write_split
from dcube.training.runtime import pick_device
from dcube.training.team import refuse_unled

if TYPE_CHECKING:
    from dcube.config import Experiment
    from dcube.data.store import Store


def pretrain(
    data: Sequence[str], out: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (),
    seed: int | None = None, device: str | None = None, max_minutes: float | None = None, restart: bool = False,
) -> Path:  # fmt: skip
    """One unconditional step 1 on the training parts of several image sets; repeat the call to continue it.

    Every image counts alike; each set keeps its own normalisation and the split that `fit` with the same seed gives
    it, so that no validation or test image is ever seen; images that have no labels are all for training. Leaves a run
    folder without a classifier and returns its diffusion/model.safetensors. Raises InputError in one sentence for
    whatever is wrong.
    """
    refuse_unled()
    settings = resolve(recipe, overrides, seed, device)
    run = Run(out)
    run.refuse_folder()
    if not restart:
        run.refuse_changes(settings)
    check_models(settings, classifier=False)
    if not (run.diffusion / "init.json").is_file():
        check_initial_weights(settings)
    images = [open_unlabelled(one, settings.seed) for one in data]
    for one in images:
        print(describe(one))
    begin = time.monotonic()
    stores = {name: store_of(one, settings) for name, one in zip(set_names(data), images, strict=True)}
    joint = _joint(stores, settings)
    run = Run.create_or_open(
        out, settings, store=joint.parts[0].store.directory, store_key=digest([s.key for s in stores.values()]),
        data_name=", ".join(data), device=str(pick_device(settings.runtime.device)), restart=restart,
        broken=[row for store in stores.values() for row in store.broken],
        sets=[{"name": n, "key": s.key, "store": str(s.directory.resolve())} for n, s in stores.items()],
    )  # fmt: skip
    with run.locked():
        write_split(run.split, joint, joint.splits)
        stages.diffuse(run, None if max_minutes is None else begin + 60 * max_minutes)
        stages.report(run)
        if run.has_done("diffuse"):
            run.ended()
    return run.diffusion / "model.safetensors"


def _joint(stores: "dict[str, Store]", settings: "Experiment") -> JointData:
    first: dict[str, str] = {}
    for name, store in stores.items():
        if (other := first.setdefault(store.key, name)) != name:
            raise InputError(f"{name} and {other} are the same images; give each set once.")
    parts = [
        ImageData(s, unlabelled_splits(s) if is_unlabelled(s) else splits_of(s, settings.data, settings.seed))
        for s in stores.values()
    ]
    return JointData(list(stores), without_held_out(list(stores), parts))
