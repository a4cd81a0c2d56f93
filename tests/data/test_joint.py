"""Several image sets as one, and what a training has seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcube.data.dataset import ImageData
from dcube.data.joint import JointData, joined, set_names
from dcube.data.seen import flags, mark, marks_of, mask, union, written
from dcube.errors import InputError
from tiny import tiny_data


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[ImageData]:
    """Two sets of 19 and 14 images."""
    folder = tmp_path_factory.mktemp("joint")
    return [tiny_data(folder / "a", (8, 6, 5)), tiny_data(folder / "b", (9, 5), seed=1)]


def test_rows_images_and_splits_are_those_of_the_sets(parts: list[ImageData]) -> None:
    data = JointData(["a", "b"], parts)
    assert data.classes == ["a", "b"] and np.bincount(data.labels).tolist() == [19, 14]
    for split in ("train", "val", "test"):
        expected = np.concatenate([parts[0].indices(split), 19 + parts[1].indices(split)])
        assert np.array_equal(data.indices(split), expected)
    rows = [25, 3, 18, 19, 3]
    one = [parts[row >= 19].images([row - 19 * (row >= 19)], 8) for row in rows]
    assert torch.equal(data.images(rows, 8), torch.cat(one))
    assert data.images([], 8).shape == (0, 1, 8, 8)
    assert len(set(data.paths)) == len(set(data.groups)) == 33 and data.paths[19] == f"b/{parts[1].paths[0]}"
    assert data.normalisation == {"a": parts[0].normalisation, "b": parts[1].normalisation}


def test_a_joint_set_is_made_again_from_its_table(parts: list[ImageData]) -> None:
    data = JointData(["a", "b"], parts)
    again = joined({"a": parts[0].store, "b": parts[1].store}, dict(zip(data.paths, data.splits, strict=True)))
    assert again.paths == data.paths and np.array_equal(again.splits, data.splits) and again.seen == data.seen


def test_grey_and_colour_do_not_go_together(parts: list[ImageData], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.channels=1"):
        JointData(["a", "c"], [parts[0], tiny_data(tmp_path / "c", (4, 4), channels=3)])


def test_names_are_short_and_each_another() -> None:
    given = ["/x/lung", "phantom:patients=3", "/y/lung", "/z/ct/manifest.csv"]
    assert set_names(given) == ["lung-1", "phantom:patients=3", "lung-2", "ct"]


def test_what_was_seen_is_known_in_another_table(tmp_path: Path) -> None:
    """An image added, another size: the store's key is another, the images are not."""
    first = tiny_data(tmp_path / "first", counts=(14, 8, 5))
    for number, changes in enumerate(({"counts": (14, 8, 6)}, {"counts": (14, 8, 5), "size": 16})):
        second = tiny_data(tmp_path / str(number), **changes)  # drawn by one generator: the images are the same
        assert first.store.key != second.store.key and second.seen_by(first.seen) == 0
        moved = second.splits.copy()
        moved[second.indices("train")[:3]] = "test"
        assert ImageData(second.store, moved).seen_by(first.seen) == 3
        assert ImageData(second.store, moved).seen_by(union(first.seen, {"other": "ff"})) == 3


def test_copies_of_ones_own_training_images_are_known_anyway(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "store", counts=(14, 8, 5))
    assert data.store.marks is not None and len(np.unique(data.store.marks)) == 27
    data.store.marks[data.indices("test")[0]] = data.store.marks[data.indices("train")[0]]
    assert data.seen_by(data.seen) == 0
    alone = ImageData(data.store, np.where(data.splits == "train", "test", "val"))
    assert alone.seen_by(data.seen) == len(data.indices("train")) + 1


def test_blank_images_and_older_stores_have_no_marks(tmp_path: Path) -> None:
    assert mark(np.full((4, 4), 7)) == 0 != mark(np.arange(16).reshape(4, 4)) != mark(np.arange(16).reshape(2, 8))
    data = tiny_data(tmp_path / "store")
    seen = data.seen
    data.store.marks = None
    assert data.seen.keys() == {data.store.key} and data.seen_by(seen) == 0
    assert union(data.seen, seen) == seen == union(seen, {})
    assert np.array_equal(marks_of(written([3, 2**63])), [3, 2**63])


def test_what_was_seen_is_counted_among_validation_and_test_images(parts: list[ImageData]) -> None:
    data, one = JointData(["a", "b"], parts), parts[0]
    assert one.seen_by(data.seen) == one.seen_by(one.seen) == data.seen_by(data.seen) == 0
    assert one.seen_by(parts[1].seen) == 0, "another set"
    moved = one.splits.copy()
    moved[one.indices("train")[:3]] = "test"
    moved[one.indices("val")[:1]] = "train"
    other = ImageData(one.store, moved)
    assert other.seen_by(one.seen) == other.seen_by(data.seen) == 3 and one.seen_by(other.seen) == 1
    assert JointData(["a", "b"], [other, parts[1]]).seen_by(data.seen) == 3


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_masks_hold_rows_and_unions(rows: list[tuple[bool, bool]]) -> None:
    one, other = np.array(rows).T
    assert np.array_equal(flags(mask(one), len(one)), one)
    both = union({"k": mask(one), "a": "00"}, {"k": mask(other), "b": "ff"})
    assert np.array_equal(flags(both["k"], len(one)), one | other) and (both["a"], both["b"]) == ("00", "ff")
