"""The run folder: where its files are, which stages are done with which inputs, and what it was made from."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import yaml

from dcube.config import Experiment
from dcube.environment import environment
from dcube.errors import InputError
from dcube.files import read_json, remove_temporaries, write_json, write_text
from dcube.lock import folder_lock
from dcube.settings import changed_settings, parse_experiment

# stage -> everything it leaves; the first of them (or the file named in PROOF) shows that it ended
OUTPUTS: dict[str, tuple[str, ...]] = {
    "diffuse": ("diffusion", "probe"),
    "select": ("selection.json", "selection.svg"),
    "classify": ("classifier",),
    "evaluate": ("evaluation",),
    "report": ("report.html",),
}
PROOF = {"diffuse": "diffusion/model.safetensors", "classify": "classifier/model.safetensors"}


class Run:
    """A run folder. Making the object touches nothing: files are read and written by its methods."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.experiment = self.path / "experiment.yaml"
        self.environment = self.path / "environment.json"
        self.split = self.path / "split.csv"
        self.data = self.path / "data"  # JSON with the store's key and place, and the name of the data
        self.diffusion = self.path / "diffusion"
        self.selection = self.path / "selection.json"
        self.selection_figure = self.path / "selection.svg"
        self.classifier = self.path / "classifier"
        self.evaluation = self.path / "evaluation"
        self.report = self.path / "report.html"
        self._stamps = self.path / ".stages.json"
        self._held: Experiment | None = None

    # ---- opening
    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run; InputError where the folder is none."""
        run = cls(path)
        if not run.experiment.is_file():
            raise InputError(f"{path} is not a run folder (it has no experiment.yaml); `dcube fit` makes one.")
        return run

    @classmethod
    def create_or_open(
        cls,
        path: str | Path,
        settings: Experiment,
        *,
        store: Path,
        store_key: str,
        data_name: str,
        device: str,
        broken: list[dict[str, str]] | None = None,
        remarks: Sequence[str] = (),
        sets: list[dict[str, str]] | None = None,
        restart: bool = False,
    ) -> Self:
        """A new run, or the one that stands there if it has the same settings and data.

        With `restart` other settings or data are accepted (the stages they touch are then done again), and a run
        with the same ones begins anew.

        store: folder of the prepared images, store_key: its content key, data_name: what a person calls the data,
        remarks: what the report must say of them,
        sets: name, key and store of each image set, where a pre-training has several (`store` is then the first's).
        Raises InputError naming the changed settings, or both data sets.
        """
        run = cls(path)
        run.refuse_folder()
        with run.locked():
            for folder in (run.path, run.evaluation):
                remove_temporaries(folder)
            if restart:
                run.restart(settings, store_key)
            elif run.experiment.is_file():
                run.refuse_changes(settings)
                settings = run.settings().model_copy(update={"runtime": settings.runtime})  # what is idle stays too
            run.refuse_other_data(store_key, data_name)
            write_text(run.experiment, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
            place = str(Path(store).resolve())
            data = {"name": data_name, "key": store_key, "store": place, "broken": broken or [], "remarks": [*remarks]}
            write_json(run.data, data | ({"sets": sets} if sets else {}))
            run.write_environment(device)
        return run

    def refuse_changes(self, settings: Experiment) -> None:
        """InputError that names every setting differing from this run's; `runtime` may differ, being about speed."""
        if self.experiment.is_file() and (changes := self._changes(settings)):
            raise InputError(
                f"{self.path} was made with other settings ({'; '.join(changes)}); repeat it with the same ones,"
                " give another --out, or --restart to redo the stages that they change."
            )

    def refuse_other_data(self, store_key: str, data_name: str) -> None:
        """InputError that names both, where this run was made of other images."""
        if self.data.is_file() and (old := read_json(self.data))["key"] != store_key:
            one = f"the data '{old['name']}'" if old["name"] != data_name else f"'{data_name}' as it was then"
            raise InputError(
                f"{self.path} belongs to {one} (key {old['key']}), not to '{data_name}' (key {store_key}); give another"
                " --out, or --restart to use it for these."
            )

    def refuse_folder(self) -> None:
        """InputError where the path is a file, or a folder that holds something else than a run."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; a run needs a folder.")
        if self.path.is_dir() and not self.experiment.is_file():
            known = {name for names in OUTPUTS.values() for name in names}
            known |= {"data", "split.csv", "environment.json", "unlabelled"}
            if other := sorted(p.name for p in self.path.iterdir() if p.name[0] != "." and p.name not in known):
                raise InputError(
                    f"{self.path} is not a run folder and holds other files ({', '.join(other[:3])});"
                    " give a new or empty folder as --out."
                )
        self.refuse_lost_stamps()

    def refuse_lost_stamps(self) -> None:
        """InputError where the file with the stamps of the stages is gone: the run would train again over its weights,
        and its looks at the test split would be forgotten."""
        made = [self.path / PROOF["diffuse"], self.evaluation / "metrics.json"]
        if not self._stamps.is_file() and any(path.is_file() for path in made):
            raise InputError(
                f"{self.path} lacks its hidden file {self._stamps.name}, which says what is done and how often the test"
                " split was seen; it was left behind when the folder was copied: copy the folder itself, not its"
                " visible files, or give another --out. Prediction works without it."
            )

    def restart(self, settings: Experiment, store_key: str) -> None:
        """Make way for other settings or data; where neither differs, remove everything this run has made, unless that
        comes from a restart that has not `ended`: the repeated command goes on with it.

        The count of its test evaluations stays.
        """
        known, begun = self.experiment.is_file(), self._read_stamps().get("restarted")
        if known and not begun and not self.differs(settings, store_key):
            for stage in reversed(OUTPUTS):
                self.clear(stage)
        write_json(self._stamps, self._read_stamps() | {"restarted": True})
        for path in (self.split, self.data, self.environment, self.experiment):
            path.unlink(missing_ok=True)

    def _changes(self, settings: Experiment) -> list[str]:
        same_runtime = settings.model_copy(update={"runtime": self.settings().runtime})
        return changed_settings(self.settings(), same_runtime)

    def differs(self, settings: Experiment, store_key: str) -> bool:
        """Whether it was made with other settings or data."""
        return bool(self._changes(settings)) or (self.data.is_file() and self.store_key() != store_key)

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes off this run for the length of a `with` block (nested use is free)."""
        self.path.mkdir(parents=True, exist_ok=True)
        return folder_lock(self.path)

    # ---- settings and data
    def settings(self) -> Experiment:
        """The resolved settings: those that are held, else those of experiment.yaml."""
        return self._held or parse_experiment(yaml.safe_load(self.experiment.read_text(encoding="utf-8")))

    def hold(self, settings: Experiment) -> None:
        """Settings of this object alone: experiment.yaml keeps its own."""
        self._held = settings

    @property
    def sets(self) -> list[dict[str, str]]:
        """Name, key and store of each image set of a pre-training without labels; empty for any other run."""
        return read_json(self.data).get("sets", []) if self.data.is_file() else []

    def stores(self) -> dict[str, Path]:
        """Folders of the prepared images by the name of their set, of which only a pre-training has several.

        Raises InputError where one is gone.
        """
        found = read_json(self.data)
        folders = {part["name"]: Path(part["store"]) for part in self.sets or [found]}
        for name, folder in folders.items():
            if not folder.is_dir():
                raise InputError(
                    f"The prepared images of '{name}' are no longer at {folder}; repeat the command that made this run,"
                    f" for example `dcube fit DATA --out {self.path}`, to prepare them again."
                )
        return folders

    def store(self) -> Path:
        """Folder of the prepared images, the first of several; InputError where it is gone."""
        return next(iter(self.stores().values()))

    def store_key(self) -> str:
        """Content key of the prepared images."""
        return str(read_json(self.data)["key"])

    def write_environment(self, device: str) -> None:
        """Versions, platform, device and command of this process; earlier commands stay listed."""
        before = read_json(self.environment)["commands"] if self.environment.is_file() else []
        write_json(self.environment, environment(device) | {"commands": before + [shlex.join(sys.argv)]})

    # ---- stages
    def _read_stamps(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"begun": {}, "done": {}, "test_evaluations": []}
        return read_json(self._stamps) if self._stamps.is_file() else empty

    def is_done(self, stage: str, inputs: str) -> bool:
        """Whether `stage` has ended with exactly these inputs (a digest) and its result is still there."""
        proof = self.path / PROOF.get(stage, OUTPUTS[stage][0])
        return bool(self._read_stamps()["done"].get(stage) == inputs) and proof.exists()

    def begin(self, stage: str, inputs: str) -> None:
        """Before work on `stage`: what was begun with these inputs is kept.

        What was begun with others is removed, and with it all that later stages built on it.
        """
        if self._read_stamps()["begun"].get(stage) != inputs:
            order = list(OUTPUTS)
            for later in reversed(order[order.index(stage) :]):
                self.clear(later)
            stamps = self._read_stamps()
            stamps["begun"][stage] = inputs
            write_json(self._stamps, stamps)

    def mark_done(self, stage: str, inputs: str) -> None:
        """Record that `stage` has ended with these inputs."""
        stamps = self._read_stamps()
        stamps["done"][stage] = inputs
        write_json(self._stamps, stamps)

    def ended(self) -> None:
        """The command that made this run has done all it was asked for: another --restart begins anew."""
        stamps = self._read_stamps()
        if stamps.pop("restarted", None):
            write_json(self._stamps, stamps)

    def clear(self, stage: str) -> None:
        """Forget `stage` and remove what it left."""
        stamps = self._read_stamps()
        known = [stamps[kind].pop(stage, None) for kind in ("begun", "done")]
        if any(known):
            write_json(self._stamps, stamps)
        for name in OUTPUTS[stage]:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @property
    def is_trained(self) -> bool:
        """Whether both trainings came to their end, not only to that of --max-minutes."""
        return self.has_done("diffuse", "classify")

    def has_done(self, *stages: str) -> bool:
        """Whether these stages have ended, whatever their inputs."""
        return set(stages) <= self._read_stamps()["done"].keys()

    @property
    def test_evaluations(self) -> int:
        """How often the test split has been looked at, over clearing and restarting."""
        return len(self._read_stamps()["test_evaluations"])

    def refuse_second_look(self, settings: Experiment, store_key: str, other_start: bool = False) -> None:
        """InputError, before anything is trained, where other settings or data, or what begins otherwise
        (`other_start`), would be tested after the test split was seen."""
        known = self.test_evaluations and self.experiment.is_file()
        if known and (other_start or self.differs(settings, store_key)):
            raise InputError(self._was_seen())

    def _was_seen(self) -> str:
        return (
            f"The test split was already evaluated {self.test_evaluations} time(s) for {self.path}, and a choice made"
            " after seeing it is no honest one; use --no-test, or --again to evaluate it once more (it is counted)."
        )

    def count_test_evaluation(self, inputs: str, again: bool) -> int:
        """Allow and count a look at the test split by a classifier (`inputs`: its digest); returns the count.

        The same classifier interrupted in its evaluation may repeat it. Raises InputError for any other second
        look without `again`.
        """
        stamps = self._read_stamps()
        looks: list[str] = stamps["test_evaluations"]
        if looks and not again and looks[-1] != inputs:
            raise InputError(self._was_seen())
        if again or not looks:
            looks.append(inputs)
            write_json(self._stamps, stamps)
        return len(looks)
