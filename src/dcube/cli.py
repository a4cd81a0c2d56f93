"""The command line: each verb is a thin call of one function, imported when it runs."""

import io
import os
import sys
import time
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import typer

from dcube import looking_cli, studies_cli
from dcube.console import (
    OneSentence,
    check_stage,
    continued,
    guarded,
    print_cautions,
    print_result,
    result_table,
    tell_unfinished,
)
from dcube.errors import InputError
from dcube.options import RESTART, Data, Debug, Device, Recipe, RunFolder, Seed, Set
from dcube.training import team

app = typer.Typer(
    name="dcube",
    cls=OneSentence,
    help="Medical image classification with the inner features of a diffusion model. Not for clinical use.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
@continued
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    restart: Annotated[bool, typer.Option("--restart", help=RESTART)] = False,
    debug: Debug = False,
) -> None:
    """The whole pipeline on embedded synthetic phantoms, a few minutes on 2 CPU cores."""
    from dcube import api

    api.fit(  # a second look at phantoms' test split harms nobody
        "phantom:", out, recipe="demo", overrides=set_ or (), seed=seed, device=device, restart=restart, again=restart
    )  # fmt: skip
    print_result(out)


@app.command()
@guarded
def prepare(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the prepared images.")],
    recipe: Recipe = "small",
    set_: Set = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Read, check and store a set of images; the result is accepted wherever DATA is."""
    from dcube import preparing

    preparing.prepare(data, out, recipe=recipe, overrides=set_ or (), seed=seed)


@app.command()
@continued
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    recipe: Recipe = "small",
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    no_test: Annotated[bool, typer.Option("--no-test", help="End with validation figures.")] = False,
    folds: Annotated[int | None, typer.Option(min=2, help="Group cross-validation with this many folds.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop at a step boundary after this time.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say sizes, memory and time; write nothing.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help=RESTART)] = False,
    again: Annotated[bool, typer.Option("--again", help="Allow one more evaluation on the test split.")] = False,
    unlabelled: Annotated[
        list[str] | None, typer.Option(metavar="DATA", help="More images, for step 1, without labels; repeatable.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train and evaluate a classifier: diffuse, select, classify, evaluate, report. Repeat the command to resume."""
    from dcube import api

    api.fit(
        data,
        out,
        unlabelled=unlabelled or (),
        recipe=recipe,
        overrides=set_ or (),
        seed=seed,
        device=device,
        no_test=no_test,
        folds=folds,
        max_minutes=max_minutes,
        dry_run=dry_run,
        restart=restart,
        again=again,
    )
    if not dry_run:
        print_result(out, "val" if no_test else "test")


@app.command()
@continued
def diffuse(
    target: Annotated[list[str], typer.Argument(metavar="RUN|DATA...", help="A run folder, or sets of images.")],
    out: Annotated[Path | None, typer.Option(help="Run folder of a pre-training on the DATA given.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of a pre-training; without it, small.")] = None,
    set_: Set = None,
    seed: Seed = None,
    device: Device = None,
    max_minutes: Annotated[float | None, typer.Option(min=0, help="Stop at a step boundary after this time.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help=RESTART)] = False,
    debug: Debug = False,
) -> None:
    """Step 1 of a run; with --out, a pre-training on sets of images without their labels (see diffusion.init)."""
    if out is not None:
        from dcube.pretraining import pretrain

        made = pretrain(
            target, out, recipe=recipe or "small", overrides=set_ or (), seed=seed, device=device,
            max_minutes=max_minutes, restart=restart,
        )  # fmt: skip
        typer.echo(f"To begin with these weights: --set diffusion.init={made}")
        return
    check_stage(target, recipe=recipe, seed=seed, restart=restart or None)
    from dcube import opening, stages

    with opening.opened(target[0], "diffuse", set_, device) as opened:
        stages.diffuse(opened, None if max_minutes is None else time.monotonic() + 60 * max_minutes)


@app.command()
@guarded
def select(run: RunFolder, set_: Set = None, device: Device = None, debug: Debug = False) -> None:
    """Test every block of the diffusion model for Gaussianity and choose the blocks to classify with."""
    from dcube import opening, stages

    with opening.opened(run, "select", set_, device) as opened:
        stages.select(opened)


@app.command()
@continued
def classify(run: RunFolder, set_: Set = None, device: Device = None, debug: Debug = False) -> None:
    """Step 2 of a run: train the classifier on the chosen blocks."""
    from dcube import opening, stages

    with opening.opened(run, "classify", set_, device) as opened:
        stages.classify(opened)


@app.command()
@guarded
def evaluate(
    run: RunFolder,
    split: Annotated[Literal["val", "test"] | None, typer.Option(help="Which split; without it, val.")] = None,
    data: Annotated[str | None, typer.Option(help="Another set of images, with the same classes.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Allow one more evaluation on the test split.")] = False,
    set_: Set = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Metrics with bootstrap intervals, and the predictions they come from."""
    if data is not None and (split or again):
        raise InputError("--data is evaluated whole, as often as you like; leave out --split and --again.")
    from dcube import opening, stages

    with opening.opened(run, "evaluate" if data is None else opening.APART, set_, device) as opened:
        metrics = stages.evaluate(opened, split or "val", again=again, data=data)
    print(result_table(metrics))
    print_cautions(run, metrics)
    if data is None and opened.report.is_file():
        stages.report(opened)  # else it would tell of older figures


@app.command()
@guarded
def report(run: RunFolder, debug: Debug = False) -> None:
    """Write report.html: losses, the selection, confusion matrix, metrics, samples."""
    from dcube import opening, stages

    with opening.opened(run, "report") as opened:
        stages.report(opened)
    typer.echo(f"Report: {opened.report}")


@app.command()
@guarded
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, folders, CSV manifests.")],
    out: Annotated[Path | None, typer.Option(help="A .csv or .json file; without it, CSV is printed.")] = None,
    by_group: Annotated[bool, typer.Option("--by-group", help="Average per parent folder or manifest group.")] = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Probabilities for new images. Needs neither the training data nor a network."""
    from dcube import prediction

    prediction.check_output(out)
    group_of = prediction.list_images(images, by_group)
    prediction.refuse_overwriting(out, images, group_of)
    from dcube import api

    rows = api.load(run, device=device).predict_files(list(group_of))
    prediction.write_rows(prediction.average_groups(rows, group_of) if by_group else rows, out)
    tell_unfinished(run)


@app.command()
@guarded
def recipes(debug: Debug = False) -> None:
    """List the recipes with what each is for."""
    from importlib import resources

    from dcube.settings import recipe_names

    for name in recipe_names():
        lines = resources.files("dcube.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        words = [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
        typer.echo(f"{name:14} {' '.join(words)}")


for verb in (looking_cli.audit, looking_cli.probe, looking_cli.explain, looking_cli.sample):
    app.command()(verb)
app.command()(studies_cli.benchmark)
app.command()(studies_cli.reproduce)


def main() -> None:
    """Entry point of the `dcube` command: under torchrun, of the process that leads and of those that help it."""
    if team.is_helper():
        _help_out(debug="--debug" in sys.argv)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no work
    with team.leading():
        app()


@continued
def _help_out(debug: Debug = False) -> None:
    from dcube import stages

    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # the first process speaks
        team.help_out(stages.help_train)


if __name__ == "__main__":
    main()
