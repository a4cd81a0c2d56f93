"""The program from Python: `fit` a folder of scans, `load` the result, ask it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.runs import Run
from dcube.settings import check_left_out, resolve
from dcube.training.team import refuse_team, refuse_unled

if TYPE_CHECKING:
    from dcube.classifier.model import Predictor
    from dcube.data.records import ImageSet
    from dcube.data.store import Store

STEP1_SHARE = 0.5  # of --max-minutes
TRAINING_SHARE = 0.9  # the rest is for evaluation and report


def fit(
    data: str | Path, out: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (), seed: int | None = None,
    device: str | None = None, no_test: bool = False, folds: int | None = None, max_minutes: float | None = None,
    dry_run: bool = False, restart: bool = False, again: bool = False,
) -> "DCube | None":  # fmt: skip
    """Diffuse, select, classify, evaluate and report; repeat the call to continue an interrupted run.

    data: a class folder, a manifest, a prepared store or `phantom:`; out: the run folder. `overrides` are
    "key.path=value". With `max_minutes` both trainings end early at a step boundary and leave a usable run; a
    repeated call trains on; the test split waits for the end. `folds`: group cross-validation with pooled
    predictions, returns None, as `dry_run` does. With `restart` the stages that changed settings or data touch are
    redone, and everything where nothing changed. Raises InputError in one sentence for whatever is wrong.
    """
    if no_test and again:
        raise InputError("--no-test leaves the test split alone and --again evaluates it; use one of them.")
    if folds is not None and (no_test or again or dry_run or max_minutes is not None):
        raise InputError("--folds goes with none of --no-test, --again, --dry-run and --max-minutes; leave them out.")
    from dcube.data.sources import describe

    refuse_unled()
    settings = resolve(recipe, overrides, seed, device)
    images = _open(str(data), settings)
    _check(Path(out), settings, folds, restart)
    print(describe(images))
    if dry_run:
        from dcube.dryrun import describe_run

        refuse_team("--dry-run measures one process")
        print(describe_run(images, settings))
        return None
    store = store_of(images, settings)
    found = _remarks(store, settings, Run(Path(out) / "fold-0" if folds else out))
    _say_of(store, found)
    if folds is not None:
        from dcube.crossval import cross_validate

        cross_validate(store, str(data), Path(out), settings, folds, restart=restart, remarks=found)
        return None
    from dcube.training.runtime import pick_device

    start = time.monotonic()
    if restart and not (no_test or again):
        Run(out).refuse_second_look(settings, store.key)
    run = Run.create_or_open(
        out, settings, store=store.directory, store_key=store.key, data_name=str(data), broken=store.broken,
        remarks=found, device=str(pick_device(settings.runtime.device)), restart=restart,
    )  # fmt: skip
    with run.locked():
        write_splits(run, store, settings)
        _run_stages(run, start, max_minutes, no_test, again)
    return load(out, device or settings.runtime.device)


def _check(out: Path, settings: Experiment, folds: int | None, restart: bool) -> None:
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
        check_initial_weights(settings)


def _run_stages(run: Run, start: float, max_minutes: float | None, no_test: bool, again: bool) -> None:
    from dcube import stages

    seconds = 60 * max_minutes if max_minutes is not None else None
    start += stages.diffuse(run, None if seconds is None else start + STEP1_SHARE * seconds)
    stages.select(run)
    stages.classify(run, None if seconds is None else start + TRAINING_SHARE * seconds)
    if len(stages.open_data(run).indices("val")):
        stages.evaluate(run, "val")
    if not run.is_trained:
        print("Training stopped at --max-minutes; repeat the command to train on. The test split waits for the end.")
    elif not len(stages.open_data(run).indices("test")):
        print("There is no test split (data.test_fraction is 0); the figures are those of the validation split.")
    elif not no_test:
        stages.evaluate(run, "test", again=again)
    stages.report(run)
    if run.is_trained:
        run.ended()


def prepare(
    data: str | Path, out: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (), seed: int | None = None
) -> Path:
    """Read, check and store a set of images in the folder `out`, which is then accepted wherever DATA is."""
    from dcube.data.sources import describe
    from dcube.data.store import build_store

    settings = resolve(recipe, overrides, seed, None)
    images = _open(str(data), settings)
    print(describe(images))
    store = build_store(images, settings.data, Path(out), _reporter())
    _say_of(store, _remarks(store, settings))
    print(f"Prepared {len(store.labels)} images in {out}")
    return Path(out)


def audit(
    data: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (), seed: int | None = None
) -> dict[str, Any]:
    """Copies, look-alikes of different groups, and shortcuts of a set of images: see `audit.audit`."""
    from dcube.audit import audit as look_through

    settings = resolve(recipe, overrides, seed, None)
    images = _open(str(data), settings)
    return look_through(images, store_of(images, settings), settings)


def _say_of(store: "Store", remarks: Sequence[str]) -> None:
    """What a person should know before the store is used."""
    for entry in store.broken:
        print(f"left out: {entry['path']}: {entry['reason']}")
    for remark in remarks:
        print(remark)


def _remarks(store: "Store", settings: Experiment, run: Run | None = None) -> list[str]:
    """On copies and look-alikes; those that the run has already are not looked for again."""
    from dcube.audit import all_remarks, look_alikes
    from dcube.files import read_json

    known = read_json(run.data) if run and run.data.is_file() else {}
    if known.get("key") == store.key and "remarks" in known:
        return list(known["remarks"])
    return all_remarks(store, look_alikes(store, settings.seed))


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

        images: a list of file paths or of arrays [H, W] / [H, W, 3] (raw pixels, as in a file), or one array or
        tensor [N, C, H, W] with values in [0, 1]. Raises InputError for a file that cannot be read.
        """
        from dcube import external

        if hasattr(images, "ndim"):
            stack = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images, dtype=np.float32)
            return self._predict_stack(stack)
        if isinstance(images, str | Path):
            raise InputError("predict_proba takes a list of images; put the one image into a list.")
        chunks = list(external.predict_raw(self._predictor, images, self._raw))
        return np.concatenate(chunks) if chunks else np.zeros((0, len(self.classes)))

    def predict_files(self, paths: Sequence[str]) -> list[dict[str, Any]]:
        """A row per image file: path, predicted, confidence, p_<class>, warning (where it looks unlike training)."""
        from dcube import external

        return external.predict_files(self._predictor, paths, self.run.settings().data.max_broken)

    def explain(
        self, paths: Sequence[str], out: str | Path, class_name: str | None = None, grid: int | None = None
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

        if isinstance(image, str | Path):
            return read_image(image)
        pixels = checked(np.asarray(image), "an array of the list")
        if self._predictor.metadata["normalisation"]["bits"] == 8 and pixels.dtype != np.uint8:
            raise InputError(
                f"Arrays in a list are raw pixels, for this run uint8, not {np.asarray(image).dtype};"
                " give values in [0, 1] as one array [N, C, S, S]."
            )
        return pixels

    def _predict_stack(self, stack: np.ndarray) -> np.ndarray:
        from dcube import external

        norm = self._predictor.metadata["normalisation"]
        if stack.ndim != 4 or stack.shape[1] != norm["channels"] or stack.shape[2] != stack.shape[3]:
            raise InputError(
                f"An array of images must be [N, {norm['channels']}, S, S] with values in [0, 1]; got {stack.shape}."
            )
        if len(stack) and not (np.isfinite(stack).all() and stack.min() >= 0 and stack.max() <= 1):
            raise InputError("An array of images must hold finite values in [0, 1].")
        parts = [stack[i : i + external.CHUNK] for i in range(0, len(stack), external.CHUNK)]
        empty = np.zeros((0, len(self.classes)))
        return np.concatenate([external.predict_stored(self._predictor, part) for part in parts] or [empty])


def write_splits(run: Run, store: "Store", settings: Experiment) -> None:
    """split.csv: the splits the data bring, or made by group; written once."""
    from dcube.data.folds import splits_of
    from dcube.tables import write_split

    if not run.split.is_file():
        write_split(run.split, store, splits_of(store, settings.data, settings.seed))


def _open(data: str, settings: Experiment) -> "ImageSet":
    """The table of images, checked as far as that goes without decoding."""
    from dcube.data.sources import open_images

    images = open_images(data, settings.seed)
    check_left_out(settings, images.classes)
    return images


def store_of(images: "ImageSet", settings: Experiment) -> "Store":
    """The prepared images, made now where they are not there yet."""
    from dcube.data.store import cached_store

    return cached_store(images, settings.data, progress=_reporter())


def _reporter() -> Any:
    """A callable (done, total) that shows progress from the first call to the last."""
    from contextlib import ExitStack

    from dcube.progress import progress

    held = ExitStack()
    advance: list[Any] = []

    def report(done: int, total: int) -> None:
        if not advance:
            advance.append(held.enter_context(progress("reading images", total)))
        advance[0](done)
        if done >= total:
            held.close()

    return report
