"""From a table of images to prepared ones, and what a person should know of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.runs import Run
from dcube.settings import check_left_out, resolve

if TYPE_CHECKING:
    from dcube.data.records import ImageSet
    from dcube.data.store import Store


def prepare(
    data: str | Path, out: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (), seed: int | None = None
) -> Path:
    """Read, check and store a set of images in the folder `out`, which is then accepted wherever DATA is; one without
    labels is accepted where such sets are.
    """
    from dcube.data.sources import describe
    from dcube.data.store import build_store

    settings = resolve(recipe, overrides, seed, None)
    refuse_inside(out, str(data))
    images = opened(str(data), settings, labels=False)
    print(describe(images))
    store = build_store(images, settings.data, Path(out), _reporter())
    say_of(store, remarks_of(store, settings))
    print(f"Prepared {len(store.labels)} images in {out}")
    return Path(out)


def audit(
    data: str | Path, *, recipe: str = "small", overrides: Sequence[str] = (), seed: int | None = None
) -> dict[str, Any]:
    """Copies, look-alikes of different groups, and where there are labels shortcuts to them: see `audit.audit`."""
    from dcube.audit import audit as look_through

    settings = resolve(recipe, overrides, seed, None)
    images = opened(str(data), settings, labels=False)
    return look_through(images, store_of(images, settings), settings)


def say_of(store: "Store", remarks: Sequence[str]) -> None:
    """What a person should know before the store is used."""
    for entry in store.broken:
        print(f"left out: {entry['path']}: {entry['reason']}")
    for remark in remarks:
        print(remark)


def remarks_of(store: "Store", settings: Experiment, run: Run | None = None) -> list[str]:
    """On copies and look-alikes; those that the run has already are not looked for again."""
    from dcube.audit import all_remarks, look_alikes
    from dcube.files import read_json

    known = read_json(run.data) if run and run.data.is_file() else {}
    if known.get("key") == store.key and "remarks" in known:
        return list(known["remarks"])
    return all_remarks(store, look_alikes(store, settings.seed))


def refuse_inside(out: str | Path, data: str) -> None:
    """InputError where the folder `out` would lie among the class folders `data`, and be taken for one of them."""
    from dcube.data.sources import manifest_of

    here, root = Path(out).resolve(), Path(data).resolve()
    if root.is_dir() and manifest_of(data) is None and root in (here, *here.parents):
        raise InputError(f"--out {out} lies inside the images' folder {data}; give a place outside of it.")


def opened(data: str, settings: Experiment, labels: bool = True) -> "ImageSet":
    """The table of images, checked as far as that goes without decoding; `labels`: they must have some."""
    from dcube.data.sources import open_images
    from dcube.data.unlabelled import UNLABELLED, open_unlabelled

    images = open_images(data, settings.seed) if labels else open_unlabelled(data, settings.seed)
    if images.classes != [UNLABELLED]:
        check_left_out(settings, images.classes)
    return images


def store_of(images: "ImageSet", settings: Experiment) -> "Store":
    """The prepared images, made now where they are not there yet."""
    from dcube.data.store import cached_store

    return cached_store(images, settings.data, progress=_reporter())


def _reporter() -> Any:
    """A callable (done, total) that shows progress from the first call to the last."""
    from contextlib import ExitStack

    from dcube.progress import progress

    held = ExitStack()
    advance: list[Any] = []

    def report(done: int, total: int) -> None:
        if not advance:
            advance.append(held.enter_context(progress("reading images", total)))
        advance[0](done)
        if done >= total:
            held.close()

    return report
