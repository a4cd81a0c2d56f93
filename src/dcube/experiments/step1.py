"""Does step 1 earn its keep? Probes and whole pipelines by group cross-validation (`dcube reproduce step1`).

For every data set, seed and fold: each arm of step 1 is trained and probed on the held-out fold, then step 2 is trained
for every system, all with the whole training part and again with a part of it, which may be drawn several times: few
labels differ more from one draw to the next than trainings do. The test split is not touched until all of that is done,
and then only where it is asked for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from dcube.config import Experiment
from dcube.data.folds import fold_groups
from dcube.data.store import Store
from dcube.errors import InputError
from dcube.experiments.pool import run_units
from dcube.experiments.step1_cell import (
    WEIGHTS,
    Arm,
    Cell,
    best_blocks,
    classify_system,
    fold_data,
    pretrain,
    reference_probes,
)
from dcube.settings import override

TRAINED, UNTRAINED, PLAIN = "trained", "untrained", "eq. 3 alone"
# of a training part: all, a part of it (a QUARTER unless said otherwise), the same beside which step 1 sees the other
# images too, without their labels
SHARES = WHOLE, PART, LABELS = "whole", "quarter", "labels"
QUARTER = 0.25
ALONE = "diffusion.align.weight=0"
EARLY = "diffusion.contrastive.horizon=0.5"  # at much noise there is no class to see
RELATIVES: dict[str, tuple[str, ...]] = {  # what could bring the labels into step 1; all without the recipe's align
    "eq. 4": (
        ALONE, "diffusion.contrastive.weight=0.1", "diffusion.contrastive.distance=centred",
        "diffusion.contrastive.pairs=all", "diffusion.contrastive.margin=1", EARLY,
    ),
    "supervised contrastive": (
        ALONE, "diffusion.contrastive.weight=0.1", "diffusion.contrastive.form=supervised", EARLY,
    ),
    "auxiliary head": (ALONE, "diffusion.contrastive.weight=1", "diffusion.contrastive.form=auxiliary", EARLY),
}  # fmt: skip
ARMS: dict[str, tuple[str, ...]] = {  # step 1, as changes of the recipe
    TRAINED: (), UNTRAINED: (), PLAIN: (ALONE, "diffusion.contrastive.weight=0"), **RELATIVES,
}  # fmt: skip
SYSTEMS: dict[str, tuple[str | None, tuple[str, ...]]] = {  # step 2: which step 1 (None: none), changes of the recipe
    "D-Cube": (TRAINED, ()),
    "untrained step 1": (UNTRAINED, ()),
    "no step 1": (None, ("classifier.lambda_cycle=0",)),
    "fine-tuned CNN": (None, (
        "classifier.head=late", "classifier.lambda_cycle=0", "classifier.lambda_consistency=0",
        "classifier.sub_network=cnn",
    )),
}


Repeat: TypeAlias = tuple[int, int]  # seed, draw of the labels
Read: TypeAlias = Callable[[Cell], dict[str, np.ndarray]]  # probabilities [n, K] of a held-out fold, by system


@dataclass(frozen=True)
class Unit:
    """A cell of the study, told so plainly that a process of its own can work on it."""

    name: str
    store: Path
    out: Path
    settings: Experiment
    folds: int
    fold: int | None  # None: the given test split, once all else is done
    share: str  # of SHARES
    timesteps: tuple[int, ...]
    arms: tuple[str, ...]
    part: float = QUARTER  # of the training part, where `share` is not the whole
    draw: int = 0  # of that part

    @property
    def directory(self) -> Path:
        """Where its results lie."""
        return self._seeds / (f"draw-{self.draw}" if self.draw else "") / self._fold

    @property
    def shared(self) -> Path:
        """Where the step 1 lies that has seen no labels, and that all draws of them go on from."""
        return self._seeds / "unlabelled" / self._fold

    @property
    def _seeds(self) -> Path:
        return self.out / self.name / self.share / f"seed-{self.settings.seed}"

    @property
    def _fold(self) -> str:
        return "test" if self.fold is None else f"fold-{self.fold}"

    @property
    def is_done(self) -> bool:
        """Whether every system of step 2 has answered."""
        return all((self.directory / "step2" / f"{system}.json").is_file() for system in SYSTEMS)

    @property
    def has_step1(self) -> bool:
        """Whether its step 1 has ended."""
        return (self.directory / "step1" / TRAINED / "done.json").is_file()

    def __str__(self) -> str:
        return str((self.directory if self.arms else self.shared).relative_to(self.out))


def study(
    stores: dict[str, Store], settings: Experiment, out: Path, *, folds: int, seeds: Sequence[int], jobs: int,
    timesteps: tuple[int, ...], whole: bool = True, quarter: bool = True, unlabelled: bool = False,
    relatives: bool = True, test: bool = False, part: float = QUARTER, draws: int = 1,
) -> list[Unit]:  # fmt: skip
    """Do (or go on with) every cell of the study; returns the cells, whose results lie in `out`. Step 1 with
    eq. 3 alone, with eq. 4 and with its relatives is asked about with the first seed and the whole training part only.
    `whole`, `quarter`, `unlabelled`: which of SHARES are asked about, the latter two of a `part` of the training part,
    drawn `draws` times; a step 1 without labels is trained once for all draws.
    `test`: when every fold is done, the test split that the data bring is predicted after training on all other images;
    shares and draws that are not asked about but done, and cells of the test split that are, are returned too.

    InputError where a class has too few groups for the folds, or for that part of their training parts, with `test`
    where a set brings no test split, and where nothing is asked, or nothing of which there are several draws.
    """
    def units_of(
        share: str, drawn: Iterable[int] = range(draws), parts: Sequence[int | None] = range(folds),
        arms: Sequence[str] = (TRAINED, UNTRAINED), some: Sequence[int] = seeds,
    ) -> list[Unit]:  # fmt: skip
        return [
            Unit(
                name, store.directory, out, settings.model_copy(update={"seed": seed}), folds, fold, share, timesteps,
                tuple(arms), part, draw,
            )
            for seed in some for draw in ((0,) if share == WHOLE else drawn) for fold in parts
            for name, store in stores.items()
        ]  # fmt: skip

    shares = [share for share, wanted in zip(SHARES, (whole, quarter, unlabelled), strict=True) if wanted]
    if not shares:
        raise InputError("Nothing is asked: leave out --no-whole or --no-quarter, or give --unlabelled.")
    if draws > 1 and not (quarter or unlabelled):
        raise InputError("--draws are of a part of the training part: leave out --no-quarter, or give --unlabelled.")
    main, *fewer = (units_of(share) for share in shares)
    scarce = [unit for units in fewer for unit in units]
    asked = (PLAIN, *RELATIVES) if relatives and whole else ()  # one after the other, so that each has an answer early
    others = [unit for arm in asked for unit in units_of(WHOLE, arms=(arm,), some=seeds[:1])]
    lacking = [name for name, store in stores.items() if "test" not in store.given_splits]
    if test and lacking:
        raise InputError(f"{', '.join(lacking)} brings no test split; leave out --test.")
    asked_last = [unit for share in shares if test for unit in units_of(share, parts=(None,))]
    for unit in (*main, *scarce, *asked_last):
        cell_of(unit)  # too few groups for such parts are found before hours of work
    for units in ([*main, *others, *scarce], asked_last):  # no test split before all folds are done
        for work in (_without_labels(units), units):
            if work:
                run_units(run_unit, work, jobs, max(1, settings.runtime.threads))
    every = [(share, draw) for share in SHARES for draw in (_drawn_before(out) if share != WHOLE else (0,))]
    before = [units_of(share, (draw,)) for share, draw in every]
    held = [*main, *scarce, *(unit for units in before if all(unit.is_done for unit in units) for unit in units)]
    held += asked_last + [unit for share, draw in every for unit in units_of(share, (draw,), (None,)) if unit.is_done]
    return list({unit.directory: unit for unit in held}.values())


def _drawn_before(out: Path) -> list[int]:
    """The draws of a part of which a study holds cells, and the first."""
    return sorted({0, *(int(folder.name.removeprefix("draw-")) for folder in out.glob("*/*/seed-*/draw-*"))})


def _without_labels(units: Sequence[Unit]) -> list[Unit]:
    """The trainings without labels that cells still need, each once: units without arms."""
    lacking = (unit for unit in units if unit.share == LABELS and not (unit.is_done or unit.has_step1))
    needed = {unit.shared: replace(unit, arms=()) for unit in lacking}
    return [unit for shared, unit in needed.items() if not (shared / WEIGHTS).is_file()]


def run_unit(unit: Unit) -> None:
    """Train, probe and classify in one cell; what is there already is not made again. Without arms: the training
    without labels alone.
    """
    cell = cell_of(unit)
    if not unit.arms:
        pretrain(cell, override(unit.settings, ARMS[TRAINED]))
        return
    reference_probes(cell, unit.settings)
    arms = {
        name: Arm(cell, name, override(unit.settings, ARMS[name]), trained=name != UNTRAINED) for name in unit.arms
    }
    probed = {name: arm.probe(unit.timesteps) for name, arm in arms.items()}
    for arm in arms.values():
        arm.textures()
    if TRAINED not in arms:
        return
    for system, (source, changes) in SYSTEMS.items():
        blocks = best_blocks(probed[source], unit.settings.features.top_k) if source else []
        classify_system(cell, system, override(unit.settings, changes), arms[source or UNTRAINED], blocks)


def cell_of(unit: Unit) -> Cell:
    """The images of a cell, dealt into its training part and its held-out fold."""
    store, seed = Store.open(unit.store), unit.settings.seed
    data = fold_data(store, seed, unit.folds, unit.fold, None if unit.share == WHOLE else unit.part, unit.draw)
    unlabelled = fold_data(store, seed, unit.folds, unit.fold) if unit.share == LABELS else None
    return Cell(unit.directory, data, seed, unlabelled, unit.shared)


def pooled(units: Sequence[Unit], read: Read) -> tuple[dict[str, dict[Repeat, np.ndarray]], np.ndarray, np.ndarray]:
    """Probabilities of one data set and share, pooled over the folds: ({system: {(seed, draw of the labels): [N, K]}},
    labels [N], groups [N]).
    """
    repeats: dict[str, dict[Repeat, np.ndarray]] = {}
    for repeat in sorted({(unit.settings.seed, unit.draw) for unit in units}):
        cells = [cell_of(unit) for unit in units if (unit.settings.seed, unit.draw) == repeat]
        rows = np.concatenate([cell.held_out for cell in cells])
        order = np.argsort(rows)
        parts = [read(cell) for cell in cells]
        for name in parts[0]:
            if not all(name in part for part in parts):
                continue  # an interrupted study has asked it of some cells only
            repeats.setdefault(name, {})[repeat] = np.concatenate([part[name] for part in parts])[order]
    store, index = cells[0].data.store, rows[order]
    return repeats, store.labels[index], np.array(fold_groups(store, index))
