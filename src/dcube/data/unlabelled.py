"""Sets for a training that needs no labels: the same as for one that does, and images that have none."""

from pathlib import Path

from dcube.data.folders import list_folder
from dcube.data.records import ImageSet, Record
from dcube.data.sources import from_files, from_table, manifest_of, open_images, read_rows
from dcube.data.store import STORE_FILE, Store

UNLABELLED = "unlabelled"


def open_unlabelled(data: str, seed: int = 0) -> ImageSet:
    """The table behind `data`: what `open_images` opens, a folder of images without sub-folders, or a manifest without
    the column label. The latter two are of one class, UNLABELLED. Raises InputError as `open_images` does.
    """
    root, table = Path(data), manifest_of(data)
    if table is not None and table.suffix.lower() == ".csv":
        rows = read_rows(table, ("path",))
        if "label" not in rows[0][1]:
            return from_table(table, [(number, row | {"label": UNLABELLED}) for number, row in rows])
    elif table is None and root.is_dir() and not (root / STORE_FILE).is_file():
        folders, images, others = list_folder(root)
        if images and not folders:
            records = [Record(image.name, UNLABELLED, image.name, None) for image in images]
            return from_files(data, root, records, others)
    return open_images(data, seed, classes=1)


def is_unlabelled(store: Store) -> bool:
    """Whether it is of such a set: all its images are for training, but for those that its table puts elsewhere."""
    return store.classes == [UNLABELLED]
