"""Options that several verbs of the command line share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Data = Annotated[str, typer.Argument(help="Folder of class folders, a manifest.csv (or its folder), or 'phantom:'.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder made by 'dcube fit'.")]
Recipe = Annotated[str, typer.Option(help="Name of a recipe (see 'dcube recipes') or a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of split, training and bootstrap.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option(help="Where to compute.")]
RESTART = "Redo the stages that changed settings or data touch, all where none did; repeated, go on with that."
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Seeds = Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2.")]
Jobs = Annotated[int, typer.Option(min=1, help="Cells side by side, each on a core of its own.")]
Budget = Annotated[str | None, typer.Option(help="Of a cell: 3min, 90s, 1h or 20epochs.")]
Size = Annotated[int | None, typer.Option(help="Pixels that every system sees; else the recipe's image_size.")]
Weights = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=FILE", help="First weights of a system; or auto, hub, none, offline. Repeatable."),
]
NoTest = Annotated[bool, typer.Option("--no-test", help="Leave the test split closed: validation figures.")]
Again = Annotated[bool, typer.Option("--again", help="Open the test split once more, for what is new.")]
