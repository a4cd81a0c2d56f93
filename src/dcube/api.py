"""The program from Python: `fit` a folder of scans, `load` the result, ask it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.preparing import opened, refuse_inside, remarks_of, say_of, store_of
from dcube.runs import Run
from dcube.settings import resolve
from dcube.training.team import refuse_team, refuse_unled

if TYPE_CHECKING:
    from dcube.classifier.model import Predictor
    from dcube.data.records import ImageSet
    from dcube.data.store import Store
    from dcube.pretraining import Pretraining

STEP1_SHARE = 0.5  # of --max-minutes
UNLABELLED_SHARE = 0.9  # of step 1, where there are images without labels
TRAINING_SHARE = 0.9  # the rest is for evaluation and report


def fit(
    data: str | Path, out: str | Path, *, unlabelled: Sequence[str | Path] = (), recipe: str = "small",
    overrides: Sequence[str] = (), seed: int | None = None, device: str | None = None, no_test: bool = False,
    folds: int | None = None, max_minutes: float | None = None, dry_run: bool = False, restart: bool = False,
    again: bool = False,
) -> "DCube | None":  # fmt: skip
    """Diffuse, select, classify, evaluate and report; repeat the call to continue an interrupted run.

    data: a class folder, a manifest, a prepared store or `phantom:`; out: the run folder. `unlabelled`: further images;
    step 1 is then trained on all without labels (OUT/unlabelled), then with labels on `data` for a tenth of the steps.
    `overrides` are "key.path=value". With `max_minutes` the trainings end early at a step boundary and leave a usable
    run; a repeated call trains on; the test split waits for the end. `folds`: group cross-validation with pooled
    predictions, returns None, as `dry_run` does. With `restart` the stages that changed settings or data touch are
    redone, and everything where nothing changed. Raises InputError in one sentence for whatever is wrong.
    """
    _refuse_mixture(no_test, again, folds is not None, dry_run or max_minutes is not None)
    from dcube.data.sources import describe

    refuse_unled()
    settings = resolve(recipe, overrides, seed, device)
    refuse_inside(out, str(data))
    images = opened(str(data), settings)
    first = _before(out, str(data), images, unlabelled, settings)
    settings = first.followed if first else settings
    _check(Path(out), settings, folds, restart, first)
    for one in first.images if first else [images]:
        print(describe(one))
    if dry_run:
        from dcube.dryrun import describe_run

        refuse_team("--dry-run measures one process")
        print(describe_run(images, settings, first))
        return None
    store = store_of(images, settings)
    found = remarks_of(store, settings, Run(Path(out) / "fold-0" if folds else out))
    say_of(store, found)
    if folds is not None:
        from dcube.crossval import cross_validate

        cross_validate(store, str(data), Path(out), settings, folds, restart=restart, remarks=found, first=first)
        return None
    if first:
        first.check_sets(restart)
    if restart and not (no_test or again):
        Run(out).refuse_second_look(settings, store.key, other_start=first is not None and first.differs)
    start = time.monotonic()
    run = _begun(out, str(data), store, settings, found, restart)
    with run.locked():
        seconds = None if max_minutes is None else 60 * max_minutes
        if first:
            start += _without_labels(run, first, start, seconds, restart)
        whole = first is None or first.has_ended
        if _run_stages(run, start, seconds, no_test, again, whole) and first:
            first.run.ended()
    return load(out, device or settings.runtime.device)


def _before(
    out: str | Path, data: str, images: "ImageSet", unlabelled: Sequence[str | Path], settings: Experiment
) -> "Pretraining | None":  # fmt: skip
    """The training without labels that step 1 begins with, in the folder of the run."""
    if not unlabelled:
        return None
    from dcube.data.unlabelled import open_unlabelled
    from dcube.pretraining import FOLDER, Pretraining

    more = [str(one) for one in unlabelled]
    for one in more:
        refuse_inside(out, one)
    others = [open_unlabelled(one, settings.seed) for one in more]
    return Pretraining([data, *more], [images, *others], settings, Path(out) / FOLDER)


def _refuse_mixture(no_test: bool, again: bool, folds: bool, shortened: bool) -> None:
    if no_test and again:
        raise InputError("--no-test leaves the test split alone and --again evaluates it; use one of them.")
    if folds and (no_test or again or shortened):
        raise InputError("--folds goes with none of --no-test, --again, --dry-run and --max-minutes; leave them out.")


def _check(out: Path, settings: Experiment, folds: int | None, restart: bool, first: "Pretraining | None") -> None:
    """InputError for what would otherwise be found after minutes or hours of work."""
    from dcube import crossval
    from dcube.checks import check_models
    from dcube.files import check_writable
    from dcube.inputs import check_initial_weights

    run = Run(out)
    check_writable(out)
    if folds is not None:
        crossval.check_folder(out)
    else:
        run.refuse_folder()
        if not restart:
            run.refuse_changes(settings)
    if restart or not run.is_trained:
        check_models(settings)
        if first is None:
            check_initial_weights(settings)
    if first is not None and folds is None:
        first.check(restart)


def _begun(
    out: str | Path, data: str, store: "Store", settings: Experiment, remarks: list[str], restart: bool
) -> Run:  # fmt: skip
    """The run folder with its split.csv: the splits the data bring, or made by group, written once. InputError before
    anything is there where the images cannot be split.
    """
    from dcube.data.folds import splits_of
    from dcube.tables import write_split
    from dcube.training.runtime import pick_device

    splits = splits_of(store, settings.data, settings.seed)
    run = Run.create_or_open(
        out, settings, store=store.directory, store_key=store.key, data_name=data, broken=store.broken,
        remarks=remarks, device=str(pick_device(settings.runtime.device)), restart=restart,
    )  # fmt: skip
    with run.locked():
        if not run.split.is_file():
            write_split(run.split, store, splits)
    return run


def _without_labels(run: Run, first: "Pretraining", start: float, seconds: float | None, restart: bool) -> float:
    """The part of step 1 that needs no labels; returns the seconds that probes took. A finished run does not miss its
    weights.
    """
    if run.is_trained and not restart and not first.weights.is_file():
        return 0.0
    return first.train(None if seconds is None else start + UNLABELLED_SHARE * STEP1_SHARE * seconds, restart)


def _run_stages(run: Run, start: float, seconds: float | None, no_test: bool, again: bool, whole: bool) -> bool:
    """Whether all of it has ended; whole: whether what the run begins with has."""
    from dcube import stages

    start += stages.diffuse(run, None if seconds is None else start + STEP1_SHARE * seconds)
    stages.select(run)
    stages.classify(run, None if seconds is None else start + TRAINING_SHARE * seconds)
    if len(stages.open_data(run).indices("val")):
        stages.evaluate(run, "val")
    trained = run.is_trained and whole
    if not trained:
        print("Training stopped at --max-minutes; repeat the command to train on. The test split waits for the end.")
    elif not len(stages.open_data(run).indices("test")):
        print("There is no test split (data.test_fraction is 0); the figures are those of the validation split.")
    elif not no_test:
        stages.evaluate(run, "test", again=again)
    stages.report(run)
    if trained:
        run.ended()
    return trained


def load(run: str | Path, device: str | None = None) -> "DCube":
    """The trained classifier of a run folder; needs neither its data nor a network."""
    return DCube(Run.open(run), device or "auto")


class DCube:
    """A trained classifier: `classes`, `predict_proba`, `predict_files`, `explain`, `sample`."""

    def __init__(self, run: Run, device: str = "auto") -> None:
        from dcube import stages
        from dcube.training.runtime import pick_device

        self.run = run
        self._predictor: Predictor = stages.load(run, pick_device(device))
        self.classes: list[str] = self._predictor.classes

    def predict_proba(self, images: Any) -> np.ndarray:
        """Class probabilities [N, K] float64, in the order of `classes`.

        images: a list (or array) of file paths or of arrays [H, W] / [H, W, 3] (raw pixels, as in a file), or one array
        or tensor [N, C, H, W] with values in [0, 1]. Raises InputError for a file that cannot be read, and for more
        bits per value than training images of 8 had.
        """
        from dcube import inference

        listed = getattr(getattr(images, "dtype", None), "kind", "") in tuple("USO")  # an array of paths
        if isinstance(images, str | bytes | Path) or (listed and images.ndim == 0):
            raise InputError("predict_proba takes a list of images; put the one image into a list.")
        if hasattr(images, "ndim") and not listed:
            stack = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images, dtype=np.float32)
            return self._predict_stack(stack)
        chunks = list(inference.predict_raw(self._predictor, images, self._raw))
        return np.concatenate(chunks) if chunks else np.zeros((0, len(self.classes)))

    def predict_files(self, paths: Sequence[str | Path]) -> list[dict[str, Any]]:
        """A row per image file: path, predicted, confidence, p_<class>, warning (where it looks unlike training)."""
        from dcube import inference

        return inference.predict_files(self._predictor, paths)

    def explain(
        self, paths: Sequence[str | Path], out: str | Path, class_name: str | None = None, grid: int | None = None
    ) -> list[dict[str, Any]]:
        """Pictures of what an answer hangs on, for image files: see `explanation.write_explanations`. class_name: the
        class that is asked about, None: the predicted one; grid: cells of an image's side that are told apart.
        """
        from dcube import explanation

        cells = explanation.GRID if grid is None else grid
        return explanation.write_explanations(self._predictor, paths, Path(out), class_name, cells)

    def sample(self, class_name: str, n: int, seed: int = 0) -> np.ndarray:
        """`n` synthetic images of a class, [n, C, H, W] float32 in [0, 1]; image i depends on (seed, i) alone."""
        import torch

        if class_name not in self.classes:
            raise InputError(f"There is no class '{class_name}'; this run knows {', '.join(self.classes)}.")
        diffusion = self._predictor.frozen.diffusion
        labels = torch.full((n,), self.classes.index(class_name))
        return diffusion.sample(labels, seed).numpy()

    def _raw(self, image: Any) -> np.ndarray:
        """Pixels of a file, or of one array of a list, checked as those of a file are."""
        from dcube.data.decode import checked, read_image
        from dcube.inference import refuse_deeper

        bits = self._predictor.metadata["normalisation"]["bits"]
        if isinstance(image, str | bytes | Path):
            path = os.fsdecode(image)
            pixels = read_image(path)
            refuse_deeper(pixels, bits, path)
            return pixels
        pixels = checked(np.asarray(image), "an array of the list")
        if bits == 8 and pixels.dtype != np.uint8:
            raise InputError(
                f"Arrays in a list are raw pixels, for this run uint8, not {np.asarray(image).dtype};"
                " give values in [0, 1] as one array [N, C, S, S]."
            )
        return pixels

    def _predict_stack(self, stack: np.ndarray) -> np.ndarray:
        from dcube import inference

        norm = self._predictor.metadata["normalisation"]
        if stack.ndim != 4 or stack.shape[1] != norm["channels"] or stack.shape[2] != stack.shape[3]:
            raise InputError(
                f"An array of images must be [N, {norm['channels']}, S, S] with values in [0, 1]; got {stack.shape}."
            )
        if len(stack) and not (np.isfinite(stack).all() and stack.min() >= 0 and stack.max() <= 1):
            raise InputError("An array of images must hold finite values in [0, 1].")
        parts = [stack[i : i + inference.CHUNK] for i in range(0, len(stack), inference.CHUNK)]
        empty = np.zeros((0, len(self.classes)))
        return np.concatenate([inference.predict_stored(self._predictor, part) for part in parts] or [empty])
