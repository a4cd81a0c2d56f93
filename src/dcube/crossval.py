"""Group cross-validation: every image is predicted once by a model that saw no image of its group."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dcube import stages
from dcube.classifier.model import predict_rows
from dcube.config import Experiment
from dcube.data.folds import fold_groups, fold_splits
from dcube.data.store import Store
from dcube.errors import InputError
from dcube.files import write_json
from dcube.runs import Run
from dcube.tables import read_split, write_predictions, write_split
from dcube.training.runtime import pick_device

if TYPE_CHECKING:
    from dcube.pretraining import Pretraining


def cross_validate(
    store: Store, data_name: str, out: Path, settings: Experiment, folds: int, restart: bool = False,
    remarks: Sequence[str] = (), first: "Pretraining | None" = None,
) -> dict[str, Any]:
    """Run every fold (OUT/fold-0 ..., each a run folder that resumes) and pool the out-of-fold predictions.

    first: a training without labels that each fold's step 1 begins with, made anew without the fold's images.

    Leaves OUT/evaluation/metrics.json ("split": "folds") and predictions.csv. InputError where OUT is a plain run,
    holds other files, or was made with another number of folds.
    """
    check_folder(out)
    device = str(pick_device(settings.runtime.device))
    pooled: list[dict[str, np.ndarray]] = []
    rows: list[np.ndarray] = []
    made: list[Run] = []
    for fold, splits in enumerate(fold_splits(store, folds, settings.seed, settings.data.val_fraction)):
        print(f"fold {fold + 1} of {folds}")
        begun = first.of_fold(out / f"fold-{fold}", splits) if first else None
        run = Run.create_or_open(
            out / f"fold-{fold}", begun.followed if begun else settings, store=store.directory, store_key=store.key,
            data_name=data_name, device=device, broken=store.broken, remarks=remarks, restart=restart,
        )  # fmt: skip
        made += [run, *([begun.run] if begun else [])]
        with run.locked():
            if run.split.is_file() and read_split(run.split) != dict(zip(store.paths, splits.tolist(), strict=True)):
                raise InputError(
                    f"{run.path} was made with another number of folds; repeat it with the same one,"
                    " give another --out, or --restart to redo every fold."
                )
            write_split(run.split, store, splits)
            if begun:
                begun.train(restart=restart)
            stages.diffuse(run)
            stages.select(run)
            stages.classify(run)
            data = stages.open_data(run)
            held_out = data.indices("test")
            predictor = stages.load(run, pick_device(settings.runtime.device))
            probabilities, _ = predict_rows(predictor, data, held_out)
            pooled.append(stages.with_floors(data, held_out, probabilities, settings, predictor))
            rows.append(held_out)
            stages.report(run)
    order = np.argsort(np.concatenate(rows))
    index = np.concatenate(rows)[order]
    systems = {name: np.concatenate([part[name] for part in pooled])[order] for name in pooled[0]}
    labels, groups = store.labels[index], np.array(fold_groups(store, index))
    metrics = {"split": "folds", "folds": folds} | stages.figures(systems, labels, groups, store.classes, settings)
    paths = [store.paths[i] for i in index]
    write_predictions(out / "evaluation" / "predictions.csv", paths, labels, systems[""], store.classes)
    write_json(out / "evaluation" / "metrics.json", metrics)
    for run in made:
        run.ended()
    return metrics


def check_folder(out: Path) -> None:
    """InputError where OUT is a plain run, or holds something else than folds."""
    if (out / "experiment.yaml").exists():
        raise InputError(f"{out} holds a run without folds; give another --out.")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if other := [name for name in names if name != "evaluation" and not name.startswith((".", "fold-"))]:
        raise InputError(f"{out} holds other files ({', '.join(other[:3])}); give a new or empty folder as --out.")
