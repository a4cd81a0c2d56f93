"""`dcube benchmark`: the systems of the field on the same terms, on any data; tables I, II and IX of the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dcube.baselines.backbones import Request
from dcube.baselines.registry import LARGEST, PACKAGED, SMALLEST, baseline
from dcube.checks import check_models
from dcube.data.store import Store
from dcube.diffusion.build import build_denoiser
from dcube.environment import cpu_name, environment
from dcube.errors import InputError
from dcube.experiments.benchmark.field import CNN_FLOORS, FLOORS, MOST_TRIES, OURS, is_system, names, parts_of, title
from dcube.experiments.benchmark.run import Benchmark
from dcube.experiments.benchmark.summary import rows_of_seeds, summarise
from dcube.experiments.benchmark.tables import as_csv, as_markdown
from dcube.experiments.benchmark.terms import Terms, Unit
from dcube.features.subnet import SubNetwork
from dcube.files import file_digest, read_json, write_json, write_text
from dcube.inputs import check_initial_weights
from dcube.lock import folder_lock
from dcube.report.studies import field_figure
from dcube.reproduce import named_stores
from dcube.settings import check_of_a_comparison, load_experiment
from dcube.training.budget import Budget
from dcube.training.runtime import pick_device
from dcube.training.state import load_weights

DEFAULT_BUDGET = "3min"
ALIKE = (  # unless asked for
    "runtime.compile=never",  # few of the networks say which of their parts can be compiled
    "classifier.second_reader=0", "classifier.covariance_readers=[]",  # any system may have one: NAME+cnn_probe
)
LIST_CLASSES, LIST_CHANNELS = 3, 1  # of the systems that `--list` counts the parameters of
TABLE1 = ("radio_full", "radio_lora", "radio_linear", "medclip_linear", "dcube")
TABLE2 = (
    "resnet101", "resnext101", "resnest101", "shufflenet_v2", "t2t_vit_14", "vit_b16", "cvt_13", "mit_b0", "pit_b",
    "pvt_v2_b0", "pvt_tiny", "cpt", "diffmic", "dcube",
)  # fmt: skip
TABLES: dict[str, tuple[tuple[str, ...], Literal["equal", "paper"]]] = {
    "table1": (TABLE1, "equal"), "table2": (TABLE2, "equal"), "table9": (TABLE2, "paper"),
}  # fmt: skip


def benchmark(
    data: Sequence[str | Path], out: Path, models: Sequence[str], terms: Terms, *, seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 1, no_test: bool = False, again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train every system on every image set and compare them; continues where it was interrupted, and a finished cell
    is not repeated. The test split is opened once, after all training; never with `no_test`.

    Leaves OUT/benchmark.csv, .md, .svg and .json, and returns what the last holds. InputError, before any work, for
    what cannot be done, for a folder with other terms, or for a second look at the test split without `again`.
    """
    models = check_models_of(models, terms)
    out = Path(out)
    if out.is_file():
        raise InputError(f"{out} is a file; a benchmark needs a folder.")
    stores = named_stores(data, terms.settings, out)
    held = Benchmark(stores, terms, out, models, seeds, jobs)
    for name, store in stores.items():
        _check_data(held, name, store, no_test)
    plan = terms.described() | {"data": {name: store.key for name, store in stores.items()}}
    plan |= {"files": {path: file_digest(Path(path)) for path in terms.files}}
    _check_folder(out, plan)
    _check_weights(held)
    if no_test:
        held.check_closed()
    else:
        held.check_test(again)
    out.mkdir(parents=True, exist_ok=True)
    with folder_lock(out):
        write_json(out / "plan.json", _joined(out, plan))
        held.train()
        opened = 0 if no_test else held.open_test(again)
        machine = f"{cpu_name()}, {held.threads} thread(s) a cell, {jobs} side by side"
        about = {"seeds": list(seeds), "models": list(models), "test_evaluations": opened, "machine": machine}
        return _write(held, plan | about)


def reproduce_table(
    study: str, data: Sequence[str | Path], out: Path, recipe: str, overrides: Sequence[str], *, seeds: Sequence[int],
    jobs: int = 1, budget: str | None = None, size: int | None = None, weights: Sequence[str] = (),
    no_test: bool = False, again: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Tables I, II and IX on any data: `benchmark` with the systems of the table; of table IX the optimiser, learning
    rate and weight decay of each, and its epochs unless a `budget` replaces them.
    """
    models, recipes = TABLES[study]
    terms = make_terms(recipe, overrides, size=size, recipes=recipes, budget=budget, weights=weights)
    return benchmark(data, out, models, terms, seeds=seeds, jobs=jobs, no_test=no_test, again=again)


def make_terms(
    recipe: str = "small", overrides: Sequence[str] = (), *, size: int | None = None,
    recipes: Literal["equal", "paper"] = "equal", budget: str | None = None, long: str | None = None,
    step1_share: float = 0.5, tries: int | None = None, share: float | None = None, rarest: float | None = None,
    weights: Sequence[str] = (),
) -> Terms:  # fmt: skip
    """The terms of a benchmark from what a person gives; InputError in one sentence for what is wrong.

    size: pixels that every system sees, D-Cube's CNN included; None: the recipe's `diffusion.image_size`. budget:
    of a cell, as `Budget.parse` reads it; None: 3 minutes, or the epochs of table IX with recipes "paper". weights:
    "NAME=FILE", "NAME=WORD" or "WORD" for all networks and D-Cube's CNN, with the words of `baselines.create`.
    tries: None for all that are declared.
    """
    check_of_a_comparison(overrides)
    settings = load_experiment(recipe, list(overrides))
    size = size or settings.diffusion.image_size
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"Images of {size} px are not compared; give --size {SMALLEST} .. {LARGEST}.")
    own = {"classifier.cnn_size": settings.classifier.cnn_size, "diffusion.align.size": settings.diffusion.align.size}
    for name, side in own.items():
        if any(change.startswith(f"{name}=") for change in overrides) and side != size:
            raise InputError(f"Every system sees images of the same size, D-Cube's CNNs too; give --size, not {name}.")
    same = [f"diffusion.image_size={size}", *(f"{name}={size}" for name in own)]
    asked = tuple(map(_weights, weights))
    own_cnn = [f"classifier.cnn_weights={word}" for name, word in asked if not name]  # of D-Cube and the floors too
    settings = load_experiment(recipe, [*ALIKE, *own_cnn, *overrides, *same])
    if settings.diffusion.augmentation.probability:
        raise InputError("A benchmark changes images alike for all systems: leave diffusion.augmentation out.")
    if settings.data.balance == "weights":
        raise InputError("A benchmark balances classes for all systems alike: set data.balance to sampler or none.")
    for name, value in (("share", share), ("rarest", rarest), ("step1-share", step1_share)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"--{name} {value:g} makes no sense; give a number above 0 and below 1.")
    if tries is not None and recipes == "paper":
        raise InputError("--tries goes with --recipes equal: table IX has one row for each system; leave it out.")
    tries = 1 if recipes == "paper" else MOST_TRIES if tries is None else tries
    if not 1 <= tries <= MOST_TRIES:
        raise InputError(f"--tries {tries}: {MOST_TRIES} configurations are declared for every system; use 1 or more.")
    return Terms(
        settings, recipes, Budget.parse(budget or DEFAULT_BUDGET) if budget or recipes == "equal" else None,
        None if long is None else Budget.parse(long, "--long"), step1_share, tries, share, rarest, asked,
    )  # fmt: skip


def check_models_of(models: Sequence[str], terms: Terms) -> tuple[str, ...]:
    """The systems, each once. InputError for a name that is none, or an option without its system."""
    found = tuple(dict.fromkeys(name.strip() for name in models if name.strip()))
    if not found:
        raise InputError("Give the systems, as in --models dcube,resnet18; `dcube benchmark --list` names them.")
    for name in filter(is_system, found):
        baseline(name)  # raises for a name that is none
    if ("dcube_long" in found) != (terms.long is not None):
        raise InputError("dcube_long and --long go together: --models dcube,dcube_long --long 20min.")
    for name in filter(parts_of, found):
        if not {*parts_of(name)} <= {*found}:
            raise InputError(f"{name} joins systems by their answers; name each of them in --models too.")
    networks = [name for name in found if is_system(name)]
    if strange := [name for name, _ in terms.weights if name and name not in networks]:
        listed = ", ".join(networks) or "none"
        raise InputError(
            f"--weights names {strange[0]}, which is not among the networks here ({listed}); the CNN of D-Cube, knn"
            " and probes takes its own by --set classifier.cnn_weights=FILE."
        )
    if not {*CNN_FLOORS, *OURS}.isdisjoint(found):
        check_models(terms.settings, cnn=not {*CNN_FLOORS}.isdisjoint(found))
        check_initial_weights(terms.settings)
    return found


def catalogue() -> list[tuple[str, str, str, str, str, str]]:
    """Rows of `dcube benchmark --list`: name, title, source, parameters (three classes), pixels, weights."""
    import torch

    rows = []
    for name in names():
        if not is_system(name):
            rows.append((name, title(name), (OURS | FLOORS)[name][1], *_of_recipe(name)))
            continue
        entry = baseline(name)
        try:
            with torch.device("meta"):  # the structure alone
                system, _ = entry.build(Request(LIST_CLASSES, entry.size, "none", None))
            count = f"{sum(p.numel() for p in system.parameters()) / 1e6:.1f} M"
        except InputError:  # an extra that is not installed
            count = "needs an extra"
        rows.append((name, entry.title, entry.citation, count, f"{entry.size}, others", entry.weights))
    return rows


def _of_recipe(name: str) -> tuple[str, str, str]:
    """Parameters, pixels and weights of D-Cube, the other uses of its step 1, and the floors, by the recipe `small`."""
    import torch

    if name not in (*OURS, *CNN_FLOORS):
        return "none", "any", "none"
    settings = load_experiment("small", [])
    with torch.device("meta"):  # the structure alone
        denoiser = build_denoiser(settings.diffusion, LIST_CHANNELS, LIST_CLASSES)
    network = SubNetwork(settings.classifier.cnn, "none", settings.classifier.cnn_size)
    step1, cnn = (sum(p.numel() for p in model.parameters()) / 1e6 for model in (denoiser, network))
    pixels = f"{settings.diffusion.image_size}, others"
    if name in CNN_FLOORS:
        return f"{cnn:.1f} M", pixels, PACKAGED
    if name in ("dcube", "dcube_long"):
        return f"{step1 + cnn:.1f} M + head", pixels, f"step 1 scratch; CNN {PACKAGED}"
    return f"{step1:.1f} M", pixels, "scratch"


def _write(held: Benchmark, plan: dict[str, Any]) -> dict[str, Any]:
    split = "test" if plan["test_evaluations"] else "val"
    results = summarise(held, split)
    device = str(pick_device(held.terms.settings.runtime.device))
    result, file = {"plan": plan, "results": results}, held.out / "benchmark.json"
    before = read_json(file) if file.is_file() else {}
    made = before.pop("environment", None)
    result = {"environment": made if before == result else environment(device), **result}  # of when it was made
    write_json(file, result)
    write_text(held.out / "benchmark.csv", as_csv(rows_of_seeds(held, split)))
    write_text(held.out / "benchmark.md", as_markdown(results, plan))
    write_text(held.out / "benchmark.svg", field_figure(results["sets"]))
    return result


def _weights(text: str) -> tuple[str, str]:
    name, value = text.split("=", 1) if "=" in text else ("", text)
    if value not in ("auto", "hub", "none", "offline") and not (name and Path(value).is_file()):
        raise InputError(f"--weights {text}: give NAME=FILE with a file that is there, or auto, hub, none, offline.")
    return name, value


def _check_data(held: Benchmark, name: str, store: Store, no_test: bool) -> None:
    """InputError for a set that cannot be split as a benchmark needs it, or that `diffusion.init` knows already."""
    for seed in held.seeds:
        data = Unit(held.out, name, store.directory, held.terms, held.models[0], seed).data()
        for split in ("val",) if no_test else ("val", "test"):
            if not len(data.indices(split)):
                more = "; or use --no-test" if split == "test" else ""
                raise InputError(f"{name} has no {split} split; raise data.{split}_fraction or bring one{more}.")
    init = held.terms.settings.diffusion.init
    if init is not None and (known := data.seen_by(load_weights(Path(init))[1].get("seen", {}))):
        raise InputError(f"diffusion.init={init} was trained on {known} validation or test images of {name}.")
    if len(np.unique(data.labels[data.indices("train")])) < 2:
        raise InputError(f"{name} has images of one class only; at least two are needed.")


def _check_folder(out: Path, plan: dict[str, Any]) -> None:
    """A folder holds one benchmark: cells of other terms or data would not be comparable."""
    file = out / "plan.json"
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out} holds other files; give a new or empty folder as --out.")
        return
    held = read_json(file)
    for name, value in plan.items():
        if name in ("data", "files") or (name == "long" and None in (held[name], value)):
            continue
        if held[name] != value:
            raise InputError(f"{out} holds a benchmark with another {name}; give another --out, or the same {name}.")
    if changed := [n for n, k in plan["files"].items() if held.get("files", {}).get(n, k) != k]:
        raise InputError(f"{changed[0]} has changed since {out} began with it; give the same file, or another --out.")
    if changed := [n for n, k in plan["data"].items() if held["data"].get(n, k) != k]:
        raise InputError(f"{out} holds a benchmark of other images called '{changed[0]}'; give another --out.")


def _check_weights(held: Benchmark) -> None:
    """The cells of a system begin alike, also those that are added later."""
    for name in held.stores:
        for unit in (held.unit(name, model, held.seeds[0]) for model in held.models if is_system(model)):
            if not unit.prepared.is_file():
                continue
            asked = read_json(unit.prepared)["asked"]
            if asked != unit.asked[: len(asked)]:  # older ones have no digest
                raise InputError(
                    f"{unit.model} began with other --weights in {held.out} ({asked[1] or asked[0]}); give the same"
                    " ones, or another --out."
                )


def _joined(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with the data sets and the longer step 1 that the folder knows from before."""
    before = read_json(out / "plan.json") if (out / "plan.json").is_file() else {"data": {}, "long": None}
    files = before.get("files", {}) | plan["files"]
    return plan | {"data": before["data"] | plan["data"], "long": plan["long"] or before["long"], "files": files}
