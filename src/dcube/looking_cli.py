"""The verbs that look: at a set of images, at what a model has learnt, and at why it answers as it does."""

from pathlib import Path
from typing import Annotated

import typer

from dcube.console import continued, guarded, print_probe
from dcube.errors import InputError
from dcube.files import check_file_writable, write_json
from dcube.options import Data, Debug, Device, Recipe, RunFolder, Seed, Set


@guarded
def audit(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="A .json file for all of it.")] = None,
    recipe: Recipe = "small",
    set_: Set = None,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Look a set of images through: copies, look-alikes of different groups, shortcuts to the classes."""
    from dcube import preparing
    from dcube.audit import audit_text

    if out is not None and out.suffix.lower() != ".json":
        raise InputError(f"--out {out} must end in .json.")
    if out is not None:
        check_file_writable(out)
    found = preparing.audit(data, recipe=recipe, overrides=set_ or (), seed=seed)
    if out is not None:
        write_json(out, found)
    print(audit_text(found))


@guarded
def probe(
    run: RunFolder,
    timestep: Annotated[list[int] | None, typer.Option(help="Noise level to probe at; repeatable.")] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """How good each block's features are on the validation split, beside pixels, an untrained network and the CNN."""
    from dcube import opening, stages

    with opening.opened(run, "probe", None, device) as opened:
        print_probe(stages.probe(opened, tuple(timestep or ()) or None))
    typer.echo(f"All figures: {opened.path / 'probe' / 'probe.csv'}")


@guarded
def explain(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, folders, CSV manifests.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, new or of earlier explanations.")],
    class_name: Annotated[str | None, typer.Option("--class", help="A class; without it, the predicted one.")] = None,
    grid: Annotated[int | None, typer.Option(min=3, help="Cells of an image's side; without it, 14.")] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Pictures of what an answer hangs on: parts of the image are hidden in turn."""
    from dcube import prediction

    paths = list(prediction.list_images(images))
    from dcube import api

    rows = api.load(run, device=device).explain(paths, out, class_name, grid)
    columns = ("path", "class", "probability", "predicted", "without_best", "without_random", "picture")
    prediction.write_rows([{name: row[name] for name in columns} for row in rows], None)


@continued
def sample(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder for the images, new or of an earlier part of the same samples.")],
    class_name: Annotated[str | None, typer.Option("--class", help="A class; without it, every class.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Images of each class.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images.")] = 0,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Synthetic images as PNG files and a grid; needs step 1 of a run alone."""
    from dcube.runs import Run
    from dcube.samples import write_samples

    typer.echo(f"Grid: {write_samples(Run.open(run), out, n, class_name, seed, device)}")
