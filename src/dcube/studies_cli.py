"""The verbs that compare: `dcube benchmark` and `dcube reproduce`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from dcube.console import continued, numbers
from dcube.errors import InputError
from dcube.options import Again, Budget, Debug, Device, Jobs, NoTest, Recipe, Seeds, Set, Size, Weights
from dcube.training.team import refuse_team


@continued
def benchmark(
    data: Annotated[list[str] | None, typer.Argument(metavar="DATA...", help="Sets of images, as 'dcube fit'.")] = None,
    models: Annotated[str, typer.Option(help="Systems, as in dcube,resnet18,majority (see --list).")] = "",
    seeds: Seeds = "0,1,2",
    out: Annotated[Path | None, typer.Option(help="Folder of the benchmark; repeat the command to go on.")] = None,
    budget: Budget = None,
    recipes: Annotated[Literal["equal", "paper"], typer.Option(help="One budget for all, or table IX.")] = "equal",
    recipe: Recipe = "small",
    size: Size = None,
    tries: Annotated[int | None, typer.Option(help="Configurations tried per system, by validation (2).")] = None,
    step1_share: Annotated[float, typer.Option(help="Share of D-Cube's budget that step 1 gets.")] = 0.5,
    long: Annotated[str | None, typer.Option(help="Budget of step 1 of dcube_long, as --budget.")] = None,
    share: Annotated[float | None, typer.Option(help="Keep this share of the training images, by group.")] = None,
    rarest: Annotated[float | None, typer.Option(help="Keep this share of the rarest class in training.")] = None,
    weights: Weights = None,
    jobs: Jobs = 1,
    no_test: NoTest = False,
    again: Again = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the systems, and stop.")] = False,
    set_: Set = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Systems of the field on the same terms: splits, sizes, budget, tuning, choice by validation, test once."""
    from dcube import benchmark as field

    if list_:
        for row in field.catalogue():
            typer.echo("  ".join(f"{text:{width}}" for text, width in zip(row, LIST, strict=True)).rstrip())
        return
    refuse_team("dcube benchmark starts processes of its own (--jobs)")
    if not data or out is None:
        raise InputError("Give DATA and --out, as in: dcube benchmark scans/ --models dcube,resnet18 --out bench.")
    terms = field.make_terms(
        recipe, _with_device(set_, device), size=size, recipes=recipes, budget=budget, long=long,
        step1_share=step1_share, tries=tries, share=share, rarest=rarest, weights=weights or (),
    )  # fmt: skip
    repeats = numbers(seeds or "", "--seeds")
    field.benchmark(data, out, models.split(","), terms, seeds=repeats, jobs=jobs, no_test=no_test, again=again)
    typer.echo((out / "benchmark.md").read_text(encoding="utf-8"))


LIST = (20, 40, 50, 12, 14, 0)  # widths of the columns
Unlabelled = Annotated[bool, typer.Option("--unlabelled", help="step1: and step 1 on all of it, the rest unlabelled.")]


@continued
def reproduce(
    study: Annotated[
        Literal["step1", "table1", "table2", "table9"],
        typer.Argument(help="step1: does step 1 earn its keep? Table I, II, or II with the recipes of table IX."),
    ],
    data: Annotated[list[str], typer.Option("--data", help="An image set, as for 'dcube fit'; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of the study.")],
    recipe: Recipe = "small",
    seeds: Seeds = None,
    jobs: Jobs = 1,
    folds: Annotated[int | None, typer.Option(min=2, help="step1: folds by group (3).")] = None,
    timesteps: Annotated[str | None, typer.Option(help="step1: timesteps that a probe may choose from (50).")] = None,
    whole: Annotated[bool | None, typer.Option(help="step1: ask with the whole training part.")] = None,
    quarter: Annotated[bool | None, typer.Option(help="step1: ask again with a quarter (--share) of it.")] = None,
    unlabelled: Unlabelled = False,
    share: Annotated[float | None, typer.Option(min=0.01, max=0.99, help="step1: what both keep (0.25).")] = None,
    draws: Annotated[int | None, typer.Option(min=1, help="step1: draws of what both keep (1).")] = None,
    relatives: Annotated[bool | None, typer.Option(help="step1: ask of eq. 4 and its relatives too.")] = None,
    test: Annotated[bool, typer.Option("--test", help="step1: when all folds are done, the test split too.")] = False,
    budget: Budget = None,
    size: Size = None,
    weights: Weights = None,
    no_test: NoTest = False,
    again: Again = False,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """A claim as one command: tables and figures with paired intervals. Repeat it to continue."""
    of_step1 = {
        "--folds": folds, "--timesteps": timesteps, "--whole": whole, "--quarter": quarter, "--relatives": relatives,
        "--unlabelled": unlabelled or None, "--share": share, "--draws": draws, "--test": test or None,
    }  # fmt: skip
    of_tables = {
        "--budget": budget, "--size": size, "--weights": weights, "--no-test": no_test or None, "--again": again or None
    }  # fmt: skip
    refuse_team("dcube reproduce starts processes of its own (--jobs)")
    for option, value in (of_tables if study == "step1" else of_step1).items():
        if value is not None:
            raise InputError(f"{option} does not go with {study}; leave it out.")
    if study != "step1":
        from dcube.benchmark import reproduce_table

        repeats = numbers(seeds or "0,1,2", "--seeds")
        reproduce_table(
            study, data, out, recipe, set_ or (), seeds=repeats, jobs=jobs, budget=budget, size=size,
            weights=weights or (), no_test=no_test, again=again,
        )  # fmt: skip
        typer.echo((out / "benchmark.md").read_text(encoding="utf-8"))
        return
    from dcube.experiments.step1 import QUARTER
    from dcube.reproduce import reproduce_step1, study_settings

    steps, repeats = numbers(timesteps or "50", "--timesteps"), numbers(seeds or "0,1", "--seeds")
    settings = study_settings(recipe, set_ or ())
    reproduce_step1(
        data, out, settings, folds=folds or 3, seeds=repeats, jobs=jobs, timesteps=steps,
        whole=whole is not False, quarter=quarter is not False, unlabelled=unlabelled,
        relatives=relatives is not False, test=test, share=share or QUARTER, draws=draws or 1,
    )  # fmt: skip
    typer.echo((out / "step1.md").read_text(encoding="utf-8"))


def _with_device(changes: list[str] | None, device: str | None) -> list[str]:
    return [*(changes or []), *([f"runtime.device={device}"] if device else [])]
