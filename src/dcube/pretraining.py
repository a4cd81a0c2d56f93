"""Step 1 on images without their labels: on several sets, for others to begin with (`diffusion.init`), or on a run's
own images and further ones, before its step 1 with labels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dcube import stages
from dcube.checks import check_models
from dcube.data.dataset import ImageData
from dcube.data.folds import splits_of
from dcube.data.joint import JointData, set_names
from dcube.data.sources import describe
from dcube.data.unlabelled import is_unlabelled, open_unlabelled, unlabelled_splits, without_held_out
from dcube.diffusion.warmstart import labelled_phase
from dcube.errors import InputError
from dcube.files import digest
from dcube.inputs import OWN, check_initial_weights
from dcube.preparing import refuse_inside, store_of
from dcube.runs import Run
from dcube.settings import resolve
from dcube.tables import write_split
from dcube.training.runtime import pick_device
from dcube.training.team import refuse_unled

if TYPE_CHECKING:
    from dcube.config import Experiment
    from dcube.data.records import ImageSet
    from dcube.data.store import Store

FOLDER = OWN.split("/")[1]  # of a run: the training without labels that its step 1 begins with


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
    whole = Pretraining(data, [open_unlabelled(one, settings.seed) for one in data], settings, Path(out))
    for name in data:
        refuse_inside(out, name)
    whole.check(restart)
    check_models(settings, classifier=False)
    for one in whole.images:
        print(describe(one))
    begin = time.monotonic()
    whole.train(None if max_minutes is None else begin + 60 * max_minutes, restart)
    if whole.has_ended:
        whole.run.ended()
    return whole.weights


@dataclass(frozen=True)
class Pretraining:
    """A step 1 without labels on several image sets: what they are called, their tables, and the run folder.

    splits: [N] str, those of the first set's images, where they are not what `fit` gives it.
    """

    data: Sequence[str]
    images: "Sequence[ImageSet]"
    settings: "Experiment"
    out: Path
    splits: np.ndarray | None = None

    @property
    def run(self) -> Run:
        """Its run folder."""
        return Run(self.out)

    @property
    def weights(self) -> Path:
        """Where they will be."""
        return self.run.diffusion / "model.safetensors"

    @property
    def followed(self) -> "Experiment":
        """The settings of the run that goes on from it with labels."""
        return self.settings.model_copy(update={"diffusion": labelled_phase(self.settings.diffusion, OWN)})

    def of_fold(self, run: Path, splits: np.ndarray) -> "Pretraining":
        """The same before a run on other splits of the first set."""
        return replace(self, out=run / FOLDER, splits=splits)

    def check(self, restart: bool = False) -> None:
        """InputError where its folder holds something else, or its own first weights are not there."""
        self.run.refuse_folder()
        if not restart:
            self.run.refuse_changes(self.settings)
        if not (self.run.diffusion / "init.json").is_file():
            check_initial_weights(self.settings)

    def check_sets(self, restart: bool) -> None:
        """InputError where the sets do not go together, or without `restart` are others than before; prepares them."""
        _ = self.joint
        if not restart:
            self.run.refuse_other_data(self.key, ", ".join(self.data))

    @property
    def differs(self) -> bool:
        """Whether its folder holds one with other settings or images."""
        return self.run.experiment.is_file() and self.run.differs(self.settings, self.key)

    @property
    def key(self) -> str:
        """Of all its images."""
        return digest([store.key for store in self.stores.values()])

    @cached_property
    def stores(self) -> "dict[str, Store]":
        """The prepared images by the name of their set; InputError for one that is given twice."""
        held, names = [store_of(one, self.settings) for one in self.images], set_names(self.data)
        known = self.run.sets
        if [one["key"] for one in known] == [store.key for store in held]:  # whatever the folders are called by now
            names = [one["name"] for one in known]
        stores = dict(zip(names, held, strict=True))
        first: dict[str, str] = {}
        for name, store in stores.items():
            if (other := first.setdefault(store.key, name)) != name:
                raise InputError(f"{name} and {other} are the same images; give each set once.")
        return stores

    @cached_property
    def joint(self) -> JointData:
        """All sets as one; InputError where they do not go together."""
        given = {} if self.splits is None else {next(iter(self.stores)): self.splits}
        splits = [given[name] if name in given else self._divided(name, store) for name, store in self.stores.items()]
        parts = [ImageData(store, part) for store, part in zip(self.stores.values(), splits, strict=True)]
        return JointData(list(self.stores), without_held_out(list(self.stores), parts))

    def _divided(self, name: str, store: "Store") -> np.ndarray:
        """Splits [N] of a set; InputError where it cannot be divided, as folders of patients cannot."""
        if is_unlabelled(store):
            return unlabelled_splits(store)
        try:
            return splits_of(store, self.settings.data, self.settings.seed)
        except InputError as error:
            some = ", ".join(store.classes[:3]) + (" ..." if len(store.classes) > 3 else "")
            raise InputError(
                f"{name} was read as a labelled set of the classes {some}, of which a part is held out:"
                f" {str(error).rstrip('.')}; if they are no classes, name the images in a manifest.csv without the"
                " column label (path,patient_id)."
            ) from error

    def train(self, deadline: float | None = None, restart: bool = False) -> float:
        """Begin or go on until the end, or the deadline (of `time.monotonic`); returns the seconds that probes took."""
        stores, joint = self.stores, self.joint
        run = Run.create_or_open(
            self.out, self.settings, store=joint.parts[0].store.directory,
            store_key=self.key, data_name=", ".join(self.data),
            device=str(pick_device(self.settings.runtime.device)), restart=restart,
            broken=[row for store in stores.values() for row in store.broken],
            sets=[{"name": n, "key": s.key, "store": str(s.directory.resolve())} for n, s in stores.items()],
        )  # fmt: skip
        with run.locked():
            write_split(run.split, joint, joint.splits)
            paused = stages.diffuse(run, deadline)
            stages.report(run)
        return paused

    @property
    def has_ended(self) -> bool:
        """Whether it came to its end."""
        return self.run.has_done("diffuse")
