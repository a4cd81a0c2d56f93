"""An existing run, opened for one stage that is run by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.files import write_text
from dcube.idle import told
from dcube.runs import Run
from dcube.settings import changed_settings, load_experiment

# stage -> settings, or sections of them, that may still change when it is run by itself
SECTIONS: dict[str, tuple[str, ...]] = {
    "diffuse": ("diffusion", "features", "classifier", "evaluation", "runtime"),
    "select": ("features", "classifier", "evaluation", "runtime"),
    "classify": (
        "features.timesteps", "features.eval_timesteps", "features.cache_gb", "classifier", "evaluation", "runtime",
    ),
    "probe": ("runtime",),
    "evaluate": ("evaluation", "runtime"),
    "evaluate --data": ("evaluation.bootstrap", "evaluation.level", "runtime"),
}  # fmt: skip
APART = "evaluate --data"  # what it is asked for is no part of the run


@contextmanager
def opened(
    path: str | Path, stage: str, overrides: list[str] | None = None, device: str | None = None
) -> Iterator[Run]:
    """An existing run, locked, with changed settings applied, for one `stage` run by itself.

    Settings with which the stage is refused are taken back; those of APART are not written down at all.
    """
    run = Run.open(path)
    run.refuse_lost_stamps()
    if run.sets and stage not in ("diffuse", "report"):
        raise InputError(
            f"{path} is a pre-training without labels; `dcube fit DATA --out RUN --set"
            f" diffusion.init={run.diffusion / 'model.safetensors'}` makes a classifier of it."
        )
    changes = [*(overrides or []), *([f"runtime.device={device}"] if device else [])]
    with run.locked():
        before = run.experiment.read_text(encoding="utf-8")
        if changes and stage == APART:
            run.hold(changed(run, stage, changes))
        elif changes:
            change_settings(run, stage, changes)
        try:
            yield run
        except InputError:
            write_text(run.experiment, before)
            raise


def change_settings(run: Run, stage: str, overrides: list[str]) -> None:
    """Apply `key.path=value` to this run's settings before one `stage` is run by itself: see `changed`."""
    new = changed(run, stage, overrides)
    write_text(run.experiment, yaml.safe_dump(new.model_dump(mode="json"), sort_keys=False))


def changed(run: Run, stage: str, overrides: list[str]) -> Experiment:
    """This run's settings with `key.path=value` applied, for one `stage` that is run by itself.

    Raises InputError for a setting that belongs to an earlier stage, or has no effect on this one.
    """
    acting = told(load_experiment(str(run.experiment), overrides), overrides)
    new = load_experiment(str(run.experiment), acting)
    for change in changed_settings(run.settings(), new):
        if not f"{change.partition(':')[0]}.".startswith(tuple(f"{known}." for known in SECTIONS[stage])):
            if stage == APART:
                raise InputError(f"A change of {change} has no effect on another set of images (--data); leave it out.")
            raise InputError(
                f"A change of {change} belongs to a stage before '{stage}'; use `dcube fit --restart` for it."
            )
    return new
