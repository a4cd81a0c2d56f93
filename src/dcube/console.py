"""What the command line says: results in a small table, errors in one sentence."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import typer
from typer.core import TyperGroup

from dcube.errors import DCubeError, InputError
from dcube.files import read_json

P = ParamSpec("P")
UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # Typer's, or Click's in its older versions
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 + SIGINT and SIGPIPE, as shells count them


class OneSentence(TyperGroup):
    """A faulty command line is answered as any other error is: in one sentence, with exit status 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line `args`."""
        alone = extra.get("standalone_mode", True)
        extra["standalone_mode"] = False
        if not alone:
            return super().main(*args, **extra)
        try:
            status = super().main(*args, **extra)
        except UsageError as error:
            text = getattr(error, "format_message", error.__str__)().replace("Value error, ", "")
            if "\n" not in text.strip():  # else no argument at all was given, and this is the help page
                text = f"Error: {text.rstrip('.')}; `dcube --help` and `dcube VERB --help` list what there is."
            print(text, file=sys.stderr)
            status = 2
        raise SystemExit(status if isinstance(status, int) else 0)


def guarded(verb: Callable[P, None], continues: bool = False) -> Callable[P, None]:
    """Turn what a verb raises into one sentence on stderr and an exit status; with `debug`, a traceback before it.
    continues: whether the repeated command goes on where it stopped.
    """

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # who read this has read enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE) from None
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            sentence, status = explain(error, continues)
            print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
            raise SystemExit(status) from None

    return run


def continued(verb: Callable[P, None]) -> Callable[P, None]:
    """`guarded`, for a verb whose repeated command goes on where it stopped."""
    return guarded(verb, continues=True)


def explain(error: BaseException, continues: bool = False) -> tuple[str, int]:
    """The sentence and the exit status for an exception of a verb, which when repeated `continues` or begins anew."""
    again = "repeat the same command" + (" to continue where it stopped" if continues else ", which begins anew")
    if isinstance(error, KeyboardInterrupt):
        return f"Interrupted; {again}.", INTERRUPTED
    if isinstance(error, InputError):  # also of a full disk, where it knows more than what follows
        return str(error), error.exit_code
    if _disk_is_full(error):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return f"No space left on the device{where}; free some space and {again}.", 2
    if isinstance(error, DCubeError):
        return str(error), error.exit_code
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.filename:
        return f"{error.filename} cannot be read or written ({error.strerror}).", 2
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"Something unexpected went wrong ({what}); run again with --debug for the traceback.", 1


def _disk_is_full(error: BaseException | None) -> bool:
    """ENOSPC anywhere in the chain of causes; libraries that write files themselves only keep its text."""
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        if full or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def check_stage(target: list[str], **given: Any) -> None:
    """InputError where `dcube diffuse` without --out is given more than one run, or options of a pre-training."""
    if len(target) > 1:
        raise InputError("Several sets of images are a pre-training, which needs --out RUN; of runs, give one.")
    if options := [f"--{name}" for name, value in given.items() if value is not None]:
        raise InputError(f"{options[0]} goes with a pre-training (--out); the settings of a run are changed by --set.")


def print_result(run: Path, split: str = "test") -> None:
    """Macro-F1 and accuracy with their intervals beside the floors, and where the report is.

    Shows the validation figures where `split` says so or the run has no test figures yet.
    """
    files = [run / "evaluation" / name for name in ("metrics.json", "metrics-val.json")]
    metrics = next((read_json(path) for path in files[split == "val" :] if path.is_file()), None)
    if metrics is not None:
        print(result_table(metrics))
        print_cautions(run, metrics)
    if (run / "report.html").is_file():
        print(f"Report: {run / 'report.html'}")


def print_cautions(run: Path, metrics: dict[str, Any]) -> None:
    """What limits these figures of a run, as its report says it."""
    from dcube.report.cautions import run_warnings
    from dcube.report.records import cut_short, read_run

    records = read_run(run)
    named = {"name": (records.data or {}).get("name", "")}  # what else is known of the images was said already
    if said := run_warnings(metrics, None, named, cut_short(records)):
        print("\n- ".join(["Read this with the result:", *said]))


def tell_unfinished(run: Path) -> None:
    """Say on stderr where answers are those of a model whose training has not ended."""
    from dcube.report.cautions import steps_done
    from dcube.report.records import cut_short, read_run

    with suppress(InputError):  # answers need no more than the weights
        if short := cut_short(read_run(run)):
            print(f"{run}: training stopped early ({steps_done(short)}), the model is not finished", file=sys.stderr)


def result_table(metrics: dict[str, Any]) -> str:
    """metrics.json as lines: D-Cube first, then each floor."""
    level = round(100 * metrics.get("bootstrap", {}).get("level", 0.95))
    rows = {"D-Cube": metrics, **metrics.get("floors", {})}
    width = max(14, *map(len, rows))
    lines = [
        f"{metrics['split']} split: {metrics['n']} images, {metrics['groups']} groups; {level} % intervals over groups",
        f"{'':{width}} {'macro-F1':24} {'accuracy':24}",
    ]
    for name, row in rows.items():
        figures = (_interval(row[key]) for key in ("macro_f1", "accuracy"))
        lines.append(f"{name:{width}} " + " ".join(f"{figure:24}" for figure in figures).rstrip())
    return "\n".join(lines)


def _interval(figure: dict[str, float | None]) -> str:
    value, low, high = ("n/a" if x is None else f"{x:.3f}" for x in (figure["value"], figure["low"], figure["high"]))
    return f"{value} ({low} .. {high})"


def print_probe(result: Mapping[str, Any]) -> None:
    """The best timestep of every block and model, by macro-F1 of the probe; a star where its interval over the
    untrained network lies above 0.
    """
    print(f"macro-F1 on {result['n']} images of the {result['split']} split, by probes of {result['train']} others")
    best: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in result["rows"]:
        place = row["model"], row["block"]
        if place not in best or row["macro_f1"]["value"] > best[place]["macro_f1"]["value"]:
            best[place] = row
    for (model, block), row in best.items():
        star = "*" if ((row.get("over_untrained") or {}).get("low") or 0) > 0 else " "
        at = "" if row["timestep"] is None else f"t = {row['timestep']}"
        print(f"{model:15} {block:24} {at:8} {_interval(row['macro_f1'])} {star}")
    print("* its interval over the same block of the untrained network lies above 0")
    if found := result.get("gaussianity"):
        spearman = "n/a, all blocks are alike" if found["spearman"] is None else f"{found['spearman']:+.2f}"
        print(f"rank correlation of the test's D with the probe: {spearman}")
        print(f"best block {found['best_block']}, selected {', '.join(found['selected'])}")


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers of a comma-separated option, each once; InputError in one sentence for anything else."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option} {text} is not a list of whole numbers such as 0,1.") from None
    if min(found) < 0:
        raise InputError(f"{option} {text} holds a negative number; use 0 or more.")
    return found
