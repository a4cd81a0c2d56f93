"""Building a store from a stream: what the survey decides for all images, and that memory stays bounded."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np

from dcube.config import DataConfig
from dcube.data.records import ImageSet, Record
from dcube.data.store import build_store

CONFIG = DataConfig(size=16)


def generated(count: int, odd: dict[int, np.ndarray] | None = None, side: int = 16) -> ImageSet:
    records = tuple(Record(str(i), "ab"[i % 2], str(i)) for i in range(count))
    grey = np.full((side, side), 100, np.uint8)
    return ImageSet("made", None, records, lambda record: (odd or {}).get(int(record.path), grey))


def test_a_late_colour_or_deep_image_changes_the_whole_store(tmp_path: Path) -> None:
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 0] = 255
    deep = np.linspace(0, 4000, 256).astype(np.uint16).reshape(16, 16)
    store = build_store(generated(1200, {7: colour, 801: deep}), CONFIG, tmp_path / "store")
    assert store.pixels.shape == (1200, 3, 16, 16) and store.pixels.dtype == np.uint16
    np.testing.assert_allclose(store.floats([0]), 100 / 255, atol=1e-4)
    np.testing.assert_allclose(store.floats([7])[0].mean((1, 2)), [1, 0, 0])
    assert store.floats([801]).max() == 1
    one = build_store(generated(1200, {7: colour}), DataConfig(size=16, channels=1), tmp_path / "one")
    assert one.pixels.shape == (1200, 1, 16, 16)


def test_the_range_is_of_all_deep_images_that_a_survey_misses(tmp_path: Path) -> None:
    met = set(np.linspace(0, 599, 256).astype(int).tolist())
    late = [index for index in range(600) if index not in met][::20]
    dim, bright = (np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16) for top in (1000, 60000))
    deep = {index: dim if index == late[0] else bright for index in late}
    store = build_store(generated(600, deep), CONFIG, tmp_path / "store")
    assert store.normalisation.high > 50000 and store.floats([late[-1]]).mean() < 0.6
    assert store.deep is not None and np.flatnonzero(store.deep).tolist() == late


def test_the_range_is_not_chosen_by_a_test_split(tmp_path: Path) -> None:
    dim, bright = (np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16) for top in (1000, 60000))
    images = generated(40, {index: bright if index % 4 == 0 else dim for index in range(40)})
    given = ["test" if index % 4 == 0 else "train" for index in range(40)]
    records = tuple(dataclasses.replace(r, split=split) for r, split in zip(images.records, given, strict=True))
    store = build_store(dataclasses.replace(images, records=records), CONFIG, tmp_path / "store")
    assert store.normalisation.high < 1100 and store.floats([0]).max() == 1
    assert build_store(images, CONFIG, tmp_path / "other").normalisation.high > 50000


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 1500):
        tracemalloc.start()
        build_store(generated(count, side=64), DataConfig(size=64), tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.25 * 1200 * 64 * 64
