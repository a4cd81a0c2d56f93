"""Several processes for one training, as torchrun starts them: the first runs the program, the others help it train.

A helper waits until the first process comes to a training of a run, takes part in its loop, and waits again. Everything
else (splits, selection, evaluation, report, each file) is the first one's alone.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dcube.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import Store

PATIENCE = timedelta(days=20)  # of a helper, between two trainings
FAREWELL = timedelta(seconds=10)  # of the first process at its end
END = "end"


class PartDone(Exception):
    """A helper's part of a training has ended; the rest is the first process's."""


def team_size() -> int:
    """Processes of this command: 1 unless a launcher has said where they meet."""
    return int(os.environ.get("WORLD_SIZE", "1")) if {"MASTER_ADDR", "RANK"} <= os.environ.keys() else 1


def is_helper() -> bool:
    """True in every process of a command but the first."""
    return team_size() > 1 and os.environ.get("RANK", "0") != "0"


def refuse_team(why: str) -> None:
    """InputError for what several processes cannot do together."""
    if team_size() > 1:
        raise InputError(f"{why}; run it without torchrun.")


def refuse_unled() -> None:
    """InputError where several processes run a script of their own: nobody tells the helpers from the first."""
    if not _held:
        refuse_team("Several processes train together by the command `torchrun --no-python dcube fit ...` alone")


def check_batch(images: int, setting: str, least: int = 1) -> None:
    """InputError where the processes cannot have equal parts, of at least so many images, of a batch: their gradients
    count alike.
    """
    count = team_size()
    if count > 1 and (images % count or images < least * count):
        raise InputError(
            f"{setting}={images} does not divide among {count} processes; give a multiple of {count}, at least"
            f" {least * count}."
        )


@contextmanager
def leading() -> Iterator[None]:
    """In the first process, around the whole command: at its end the helpers go."""
    if team_size() == 1:
        yield
        return
    _store()  # now, for helpers that look for it
    helpers = [f"gone/{rank}" for rank in range(1, team_size())]
    try:
        yield
    except SystemExit as end:
        helpers = [] if end.code else helpers  # after an error they may be waiting for a gradient
        raise
    finally:
        with suppress(RuntimeError):  # a helper that died; whoever started it has seen that
            _say(END)
            if helpers:
                _store().wait(helpers, FAREWELL)
        _leave()


def summon(stage: str, run: Path) -> None:
    """Call the helpers to the training of a stage of the run folder `run`."""
    if team_size() > 1 and not is_helper():
        _say(json.dumps([stage, str(run.resolve())]))


def help_out(train: Callable[[str, Path], object]) -> None:
    """What a helper does, to the end of the command. `train`: its part of a stage's training, up to PartDone."""
    number = 0
    while (word := _hear(number)) != END:
        stage, run = json.loads(word)
        number += 1
        try:
            train(stage, Path(run))
        except PartDone:
            continue
        except Exception:
            if _store().check([f"word/{number}"]):  # the first process has failed, and said why
                break
            raise
    _store().set(f"gone/{os.environ['RANK']}", "1")
    _leave()


def _say(word: str) -> None:
    store = _store()
    store.set(f"word/{store.add('words', 1) - 1}", word)


def _hear(number: int) -> str:
    store, name = _store(), f"word/{number}"
    store.wait([name], PATIENCE)
    return store.get(name).decode()


_held: "list[Store]" = []  # the one connection of this process


def _store() -> "Store":
    """What all processes of the command can read and write; the same place at which torch.distributed meets. It
    outlives a restart of the processes by their launcher.
    """
    if not _held:
        from torch.distributed import PrefixStore, rendezvous

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        _held.append(PrefixStore(f"dcube/{attempt}", next(iter(rendezvous("env://")))[0]))
    return _held[0]


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
