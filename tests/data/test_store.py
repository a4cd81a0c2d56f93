"""The store: complete or absent, reused by content, bounded in memory, honest about broken files."""

import dataclasses
import errno
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcube.config import DataConfig
from dcube.data import store as module
from dcube.data.cache import contents
from dcube.data.dataset import ImageData
from dcube.data.records import ImageSet, Record
from dcube.data.sources import open_images
from dcube.data.store import Store, build_store, cached_store, default_cache, store_key
from dcube.errors import InputError
from dcube.files import file_digest

RNG = np.random.default_rng(0)
CONFIG = DataConfig(size=16)


def make_set(root: Path, count: int = 50, truncated: int = 0) -> Path:
    for number in range(count):
        folder = root / ("benign" if number % 2 else "malignant")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:03d}.png"
        Image.fromarray(RNG.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
        if number < truncated:
            path.write_bytes(path.read_bytes()[:120])
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set")


def test_store_holds_what_the_files_hold(folder: Path, tmp_path: Path) -> None:
    images = open_images(str(folder))
    seen: list[tuple[int, int]] = []
    store = build_store(images, CONFIG, tmp_path / "out" / "store", lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 50) for i in range(50)]
    assert store.pixels.shape == (50, 1, 16, 16) and store.pixels.dtype == np.uint8
    for row in (0, 49):
        np.testing.assert_array_equal(store.pixels[row, 0], images.read(images.records[row]))
        assert store.classes[store.labels[row]] == images.records[row].label
    np.testing.assert_allclose(store.floats([3])[0], store.pixels[3] / 255, atol=1e-7)
    assert store.paths == store.groups == [record.path for record in images.records]
    assert store.given_splits == [None] * 50 and store.broken == []
    again = Store.open(tmp_path / "out" / "store")
    np.testing.assert_array_equal(again.pixels, store.pixels)
    assert (again.key, again.normalisation) == (store.key, store.normalisation)


def test_a_second_run_reuses_the_store(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_store(open_images(str(folder)), CONFIG, tmp_path / "cache")
    moved = shutil.move(folder, tmp_path / "moved")
    monkeypatch.setattr(module, "_fill", lambda *_: pytest.fail("built again"))
    assert cached_store(open_images(str(moved)), CONFIG, tmp_path / "cache").directory == first.directory


def test_the_key_follows_content_table_and_settings(folder: Path) -> None:
    images = open_images(str(folder))
    key = store_key(images, CONFIG)
    assert key == store_key(open_images(str(folder)), CONFIG.model_copy(update={"val_fraction": 0.3}))
    assert key != store_key(images, DataConfig(size=8)) and key != store_key(images, DataConfig(size=16, aspect="crop"))
    record = images.records[0]
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / record.path)
    assert key != store_key(images, CONFIG)
    renamed = ImageSet("x", None, (Record("a", "b", "g"), Record("b", "c", "g")), images.read)
    assert store_key(renamed, CONFIG) != store_key(ImageSet("y", None, renamed.records, images.read), CONFIG)


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("DCUBE_CACHE", raising=False)
    assert default_cache() == Path("/x/dcube")
    monkeypatch.setenv("DCUBE_CACHE", "/y")
    assert default_cache() == Path("/y")
    monkeypatch.delenv("DCUBE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "dcube"


def test_a_few_broken_files_are_left_out_and_named(tmp_path: Path) -> None:
    store = build_store(open_images(str(make_set(tmp_path / "set", 50, 2))), CONFIG, tmp_path / "store")
    assert len(store.labels) == len(store.paths) == len(store.pixels) == 48
    assert [row["path"] for row in store.broken] == ["benign/001.png", "malignant/000.png"]
    assert all("damaged" in row["reason"] for row in Store.open(tmp_path / "store").broken)


def test_six_per_cent_of_truncated_files_are_refused(tmp_path: Path) -> None:
    images = open_images(str(make_set(tmp_path / "set", 50, 3)))
    with pytest.raises(InputError, match=r"3 of 50 images.*5%.*benign/001.png: the image is damaged") as caught:
        build_store(images, CONFIG, tmp_path / "store")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_class_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path / "set", 50)
    (tmp_path / "set" / "rare").mkdir()
    (tmp_path / "set" / "rare" / "0.png").write_text("no image")
    with pytest.raises(InputError, match="No image of the class 'rare'"):
        build_store(open_images(str(tmp_path / "set")), CONFIG, tmp_path / "store")


def test_a_cached_store_of_an_older_decoder_is_built_again(folder: Path, tmp_path: Path) -> None:
    images = open_images(str(folder))
    store = cached_store(images, CONFIG, tmp_path)
    file = store.directory / "store.json"
    file.write_text(file.read_text().replace('"decoder": 3', '"decoder": 1'))
    again = cached_store(images, CONFIG, tmp_path)
    assert (again.decoder, again.key) == (3, store.key) and '"decoder": 3' in file.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_crash_leaves_nothing(folder: Path, tmp_path: Path, error: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise error

    with pytest.raises(error):
        cached_store(open_images(str(folder)), CONFIG, tmp_path / "cache", stop)
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


def test_what_a_kill_left_is_not_taken_for_a_store_and_removed_later(folder: Path, tmp_path: Path) -> None:
    import os

    left = tmp_path / ".store.99999.tmp"
    left.mkdir()
    (left / "pixels.bin").write_bytes(b"half")
    for path in (left / "pixels.bin", left):
        os.utime(path, (1, 1))
    build_store(open_images(str(folder)), CONFIG, tmp_path / "store")
    assert not left.exists()


def test_what_a_kill_left_of_other_images_is_removed_too(folder: Path, tmp_path: Path) -> None:
    import os

    old, new = (tmp_path / "cache" / "stores" / f".{key}.tmp" for key in ("0123.99999999", "4567.99999999"))
    for left in (old, new):
        left.mkdir(parents=True)
        (left / "pixels.bin").write_bytes(b"half")
    for path in (old / "pixels.bin", old):
        os.utime(path, (1, 1))
    running = tmp_path / "cache" / "stores" / f".89ab.{os.getpid()}.tmp"
    shutil.copytree(old, running, copy_function=shutil.copy2)
    os.utime(running, (1, 1))
    cached_store(open_images(str(folder)), CONFIG, tmp_path / "cache")
    assert not old.exists() and new.exists() and running.exists()


def test_files_that_can_be_read_by_now_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = open_images(str(make_set(tmp_path / "set", 50, 1)))
    codec = images.read

    def without(record: Record) -> np.ndarray:
        if record.path.endswith("002.png"):
            raise InputError("no codec")
        return codec(record)

    lacking = dataclasses.replace(images, read=without)
    before = cached_store(lacking, DataConfig(size=32, max_broken=0.5), tmp_path / "cache")
    assert len(before.broken) > 1 and cached_store(lacking, DataConfig(size=32, max_broken=0.5), tmp_path / "cache")
    assert "can be read now" not in capsys.readouterr().err
    cached_store(images, DataConfig(size=32, max_broken=0.5), tmp_path / "cache")
    said = capsys.readouterr().err
    assert "002.png" in said and str(before.directory) in said and said.count("\n") == 1


def test_the_sides_of_the_files_are_kept(tmp_path: Path) -> None:
    for number, side in enumerate((20, 30, 40)):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((10, side), number, np.uint8)).save(path)
    store = build_store(open_images(str(tmp_path / "set")), CONFIG, tmp_path / "store")
    assert store.sides == [20, 39]


def test_no_space_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
        with pytest.raises(InputError, match="No space is left"):
            cached_store(open_images(str(folder)), CONFIG, tmp_path / "cache")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write_pixels", full)
    with pytest.raises(InputError, match="DCUBE_CACHE"):
        cached_store(open_images(str(folder)), CONFIG, tmp_path / "cache")
    assert list((tmp_path / "cache" / "stores").iterdir()) == []


def test_a_prepared_store_is_data(folder: Path, tmp_path: Path) -> None:
    built = build_store(open_images(str(folder)), CONFIG, tmp_path / "store")
    images = open_images(str(tmp_path / "store"))
    assert images.classes == ["benign", "malignant"]
    assert cached_store(images, CONFIG, tmp_path / "cache").key == built.key and not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(images.read(images.records[5]), built.pixels[5, 0])
    with pytest.raises(InputError, match="holds 16 px.*--set data.size=16"):
        cached_store(images, DataConfig(size=32), tmp_path / "cache")


def test_bad_store_folders_are_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store in"):
        Store.open(folder)
    with pytest.raises(InputError, match="exists already"):
        build_store(open_images(str(folder)), CONFIG, folder)
    build_store(open_images(str(folder)), CONFIG, tmp_path / "store")
    (tmp_path / "store" / "pixels.bin").write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        Store.open(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text('{"format": 0}')
    with pytest.raises(InputError, match="another version"):
        Store.open(tmp_path / "store")


def test_image_data(folder: Path, tmp_path: Path) -> None:
    store = build_store(open_images(str(folder)), CONFIG, tmp_path / "store")
    data = ImageData(store, np.array(["train"] * 40 + ["val"] * 4 + ["test"] * 6))
    np.testing.assert_array_equal(data.indices("val"), [40, 41, 42, 43])
    same = data.images([0, 3], 16).numpy()
    np.testing.assert_array_equal(same, store.floats([0, 3]))
    np.testing.assert_allclose(data.images([0, 3], 8).numpy(), same.reshape(2, 1, 8, 2, 8, 2).mean((3, 5)), atol=1e-6)
    odd = data.images([0, 3], 12)
    assert odd.shape == (2, 1, 12, 12) and odd.min() >= 0 and odd.max() <= 1
    np.testing.assert_array_equal(odd[1:], data.images([3], 12))
    with pytest.raises(InputError, match="not a split"):
        data.indices("holdout")
    with pytest.raises(ValueError):
        ImageData(store, np.array(["train"]))


def test_reading_many_files_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command reads all files to know them again: of a hundred thousand that takes minutes."""
    names = ["a", "b", "lacking"]
    for name in names[:2]:
        (tmp_path / name).write_text(name)
    told = contents(tmp_path, names)
    assert capsys.readouterr().err == "" and told[:2] == [file_digest(tmp_path / name) for name in names[:2]]
    assert told[2].startswith("unreadable: ")
    monkeypatch.setattr("dcube.data.cache.MANY", 3)
    assert contents(tmp_path, names) == told
    assert "reading files: 3/3" in capsys.readouterr().err
