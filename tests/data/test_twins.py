"""Images that stand twice: found, kept together, and told where that is too late."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcube.config import DataConfig
from dcube.data.dataset import ImageData
from dcube.data.folds import fold_groups, fold_splits, splits_of
from dcube.data.sources import open_images
from dcube.data.store import STORE_FILE, Store, build_store
from dcube.data.twins import joined_groups, remarks, twins_of
from dcube.errors import InputError
from dcube.files import read_json, write_json


def write(root: Path, names: list[str], same: list[tuple[str, str]], table: str = "") -> Store:
    """A store of images of noise, each of `names` (class/file), the second of every pair a copy of the first."""
    for number, name in enumerate(names):
        path = root / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = next((names.index(first) for first, second in same if second == name), number)
        noise = np.random.default_rng(source).integers(0, 256, (16, 16)).astype(np.uint8)
        Image.fromarray(noise).save(path)
    if table:
        (root / "set" / "manifest.csv").write_text(table)
    return build_store(open_images(str(root / "set")), DataConfig(size=16), root / "store")


def test_twins_are_equal_to_the_last_bit_and_blank_images_are_none() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 4, 4)).astype(np.uint8)
    images[4], images[6], images[5] = images[1], images[1], images[0]
    images[5, 0, 0, 0] ^= 1
    images[2] = images[3] = 9
    assert twins_of(images) == [[1, 4, 6]]


def test_groups_of_twins_become_one_but_not_over_given_splits() -> None:
    groups = ["a", "b", "c", "d", "a"]
    assert joined_groups(groups, [], [None] * 5) == groups
    assert len(set(joined_groups(groups, [[0, 1], [2, 1]], [None] * 5))) == 2
    chained = joined_groups(groups, [[0, 1], [2, 1]], [None] * 5)
    assert chained[0] == chained[1] == chained[2] == chained[4] != chained[3] == "d"
    assert joined_groups(groups, [[0, 1], [2, 3]], ["train", "test", "val", "val", "train"]) == [*"abcca"]
    three = joined_groups(["a", "b", "c"], [[0, 1, 2]], ["test", "train", "train"])
    assert three[0] == "a" and three[1] == three[2] == "b"


def test_copies_are_never_divided(tmp_path: Path) -> None:
    names = [f"{kind}/{number:02d}.png" for kind in ("ill", "well") for number in range(20)]
    same = [(f"ill/{n:02d}.png", f"ill/{n + 10:02d}.png") for n in range(10)]
    store = write(tmp_path, names, same)
    found = dict(zip(store.paths, store.groups, strict=True))
    assert all(found[first] == found[second] for first, second in same) and len(set(store.groups)) == 30
    every = [splits_of(store, DataConfig(), seed) for seed in range(5)]
    every += fold_splits(store, 3, 0)
    for splits in every:
        home = dict(zip(store.paths, splits.tolist(), strict=True))
        assert all(home[first] == home[second] for first, second in same)
    assert remarks(store) == ["10 images are copies of others (the first: ill/00.png and ill/10.png)."]


def test_copies_that_a_table_divides_or_labels_differently_are_told(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in ("ill", "well") for number in range(4)]
    rows = [f"{name},{name.split('/')[0]},{'test' if name[-5] == '3' else 'train'}" for name in names]
    same = [("ill/0.png", "ill/3.png"), ("ill/1.png", "well/1.png")]
    store = write(tmp_path, names, same, "\n".join(["path,label,split", *rows]))
    for splits in fold_splits(store, 2, 0):  # of images that no test split holds
        home = dict(zip(store.paths, splits.tolist(), strict=True))
        assert home["ill/1.png"] == home["well/1.png"] and home["ill/3.png"] == ""
    assert splits_of(store, DataConfig(val_fraction=0), 0).tolist() == [s for s in store.given_splits]
    first, across, torn = remarks(store)
    assert first.startswith("2 images are copies") and "too good" in across and "ill/0.png and ill/3.png" in across
    assert "different labels" in torn and "ill/1.png and well/1.png" in torn


def test_copies_that_were_divided_into_train_and_val_meet_in_one_fold(tmp_path: Path) -> None:
    names = [f"{kind}/{number:02d}.png" for kind in ("ill", "well") for number in range(20)]
    same = [(f"ill/{n:02d}.png", f"ill/{n + 10:02d}.png") for n in range(10)]
    rows = [f"{name},{name.split('/')[0]},{'val' if int(name[-6:-4]) >= 10 else 'train'}" for name in names]
    store = write(tmp_path, names, same, "\n".join(["path,label,split", *rows]))
    assert len(set(store.groups)) == 40, "the table stands"
    for splits in fold_splits(store, 3, 0, 0.2):
        home = dict(zip(store.paths, splits.tolist(), strict=True))
        assert all(home[first] == home[second] for first, second in same)
        group = dict(zip(store.paths, ImageData(store, splits).groups, strict=True))
        assert all(group[first] == group[second] for first, second in same), "choices are made between groups there"
    asked = np.arange(len(store.paths))
    assert len(set(fold_groups(store, asked))) == 30
    assert len(set(ImageData(store, splits_of(store, DataConfig(), 0)).groups)) == 40


def test_too_few_groups_because_of_copies_is_told(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in ("ill", "well") for number in range(5)]
    store = write(tmp_path, names, [("ill/0.png", f"ill/{n}.png") for n in range(1, 5)])
    for split in (lambda: splits_of(store, DataConfig(), 0), lambda: fold_splits(store, 3, 0)):
        with pytest.raises(InputError, match="4 images are copies of others.*Copies count as one group"):
            split()


def test_a_store_of_an_older_version_keeps_its_groups_and_is_looked_through(tmp_path: Path) -> None:
    store = write(tmp_path, ["ill/0.png", "ill/1.png", "well/0.png"], [("ill/0.png", "ill/1.png")])
    meta = read_json(store.directory / STORE_FILE)
    assert meta.pop("twins") == [[0, 1]]
    write_json(store.directory / STORE_FILE, meta)
    older = Store.open(store.directory)
    assert older.groups == older.paths and store.groups == ["ill/0.png", "ill/0.png", "well/0.png"]
    assert remarks(older) == remarks(store) != []


def test_a_set_without_copies_has_nothing_to_say(tmp_path: Path) -> None:
    store = write(tmp_path, ["ill/0.png", "well/0.png"], [])
    assert store.twins == [] and remarks(store) == [] and store.groups == store.paths
