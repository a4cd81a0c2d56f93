"""Splits and folds: groups whole, every class everywhere, given splits untouched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcube.data.split import assign_folds, assign_splits, check_splits, keep_share
from dcube.errors import InputError


@st.composite
def tables(draw: st.DrawFn, per_class: int) -> tuple[list[str], list[str]]:
    """Labels and groups with at least `per_class` groups of one label each, some more with mixed labels."""
    labels, groups = [], []
    classes = draw(st.integers(2, 5))
    for label in range(classes):
        for number in range(draw(st.integers(per_class, per_class + 5))):
            size = draw(st.integers(1, 8))
            labels += [f"class{label}"] * size
            groups += [f"{label}-{number}"] * size
    for number in range(draw(st.integers(0, 3))):
        for label in range(draw(st.integers(1, classes))):
            labels.append(f"class{label}")
            groups.append(f"mixed-{number}")
    return labels, groups


def parts_of_groups(groups: list[str], parts: np.ndarray) -> dict[str, set]:
    held: dict[str, set] = {}
    for group, part in zip(groups, parts.tolist(), strict=True):
        held.setdefault(group, set()).add(part)
    return held


def make(labels: list[str], groups: list[str], given: list[str | None] | None = None, seed: int = 0) -> np.ndarray:
    given = given if given is not None else [None] * len(labels)
    return assign_splits(labels, groups, given, val_fraction=0.15, test_fraction=0.15, seed=seed)


@settings(max_examples=60, deadline=None)
@given(table=tables(3), seed=st.integers(0, 5))
def test_made_splits(table: tuple[list[str], list[str]], seed: int) -> None:
    labels, groups = table
    splits = make(labels, groups, seed=seed)
    assert all(len(held) == 1 for held in parts_of_groups(groups, splits).values())
    for name in ("train", "val", "test"):
        assert {label for label, split in zip(labels, splits, strict=True) if split == name} == set(labels)
    check_splits(labels, groups, splits)
    np.testing.assert_array_equal(splits, make(labels, groups, seed=seed))


@settings(max_examples=60, deadline=None)
@given(table=tables(4), folds=st.integers(2, 4), seed=st.integers(0, 5))
def test_folds(table: tuple[list[str], list[str]], folds: int, seed: int) -> None:
    labels, groups = table
    fold = assign_folds(labels, groups, folds, seed)
    assert all(len(held) == 1 for held in parts_of_groups(groups, fold).values())
    for number in range(folds):
        assert {label for label, part in zip(labels, fold, strict=True) if part == number} == set(labels)


def many(classes: tuple[int, ...] = (60, 300, 900), per_group: int = 3) -> tuple[list[str], list[str]]:
    labels = [f"c{k}" for k, count in enumerate(classes) for _ in range(count)]
    return labels, [f"{label}-{i // per_group}" for i, label in enumerate(labels)]


def test_shares_hold_in_every_class() -> None:
    labels, groups = many()
    splits = make(labels, groups)
    for label in set(labels):
        mine = splits[np.array(labels) == label]
        for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert abs((mine == name).mean() - share) < 0.05
    folds = assign_folds(labels, groups, 5, 0)
    counts = np.array([[np.sum((folds == f) & (np.array(labels) == c)) for c in set(labels)] for f in range(5)])
    assert (counts.max(0) - counts.min(0) <= 3).all()


def test_seed_changes_the_split() -> None:
    labels, groups = many()
    assert (make(labels, groups) != make(labels, groups, seed=1)).any()


def test_a_hundred_thousand_groups_are_dealt_in_seconds() -> None:
    labels, groups = many((2_000, 18_000, 40_000), 1)
    assert (make(labels, groups) == "val").sum() == pytest.approx(9000, rel=0.01)


def test_given_splits_are_kept_and_val_is_cut_from_train() -> None:
    labels, groups = many((60, 300), 3)
    test = {group for number, group in enumerate(sorted(set(groups))) if number % 5 == 0}
    given_splits: list[str | None] = ["test" if group in test else "train" for group in groups]
    splits = make(labels, groups, given_splits)
    np.testing.assert_array_equal(splits == "test", np.array(given_splits) == "test")
    train = np.array(given_splits) == "train"
    assert abs((splits[train] == "val").mean() - 0.15) < 0.03
    assert all(len(held) == 1 for held in parts_of_groups(groups, splits).values())
    complete: list[str | None] = [str(split) for split in splits]
    np.testing.assert_array_equal(make(labels, groups, complete), splits)


def test_a_given_class_of_one_group_stays_in_train() -> None:
    labels, groups = ["rare"] * 4 + ["other"] * 40, ["r"] * 4 + [f"o{i // 2}" for i in range(40)]
    splits = make(labels, groups, ["train"] * 42 + ["test"] * 2)
    assert set(splits[:4]) == {"train"} and "val" in splits


def test_too_few_groups() -> None:
    labels, groups = ["a"] * 10 + ["b"] * 10, [f"a{i}" for i in range(10)] + ["b0"] * 5 + ["b1"] * 5
    with pytest.raises(InputError, match="class 'b' has 2 group.*3 are needed"):
        make(labels, groups)
    with pytest.raises(InputError, match="class 'b' has 2 group.*5 are needed"):
        assign_folds(labels, groups, 5, 0)
    with pytest.raises(InputError, match="at least 2"):
        assign_folds(labels, groups, 1, 0)


def test_groups_that_tie_all_classes_together_are_explained() -> None:
    labels, groups = ["a", "b", "c"] * 2 + ["b", "a", "c"], ["1"] * 3 + ["2"] * 3 + ["3", "4", "5"]
    with pytest.raises(InputError, match="No split puts every class"):
        assign_folds(["a", "b", "a", "c", "b", "c"], ["1", "1", "2", "2", "3", "3"], 2, 0)
    assert set(make(labels, groups)) == {"train", "val", "test"}


def test_partly_given_and_faulty_splits() -> None:
    with pytest.raises(InputError, match="some have none"):
        make(["a", "b"], ["1", "2"], ["train", None])
    with pytest.raises(InputError, match="'holdout' is not a split"):
        check_splits(["a"], ["1"], np.array(["holdout"]))
    with pytest.raises(InputError, match="one class only"):
        check_splits(["a", "a"], ["1", "2"], np.array(["train", "test"]))


@given(table=tables(per_class=1), share=st.floats(0.05, 0.95), seed=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_share_keeps_whole_groups_and_classes(
    table: tuple[list[str], list[str]], share: float, seed: int
) -> None:
    labels, groups = table
    kept = keep_share(labels, groups, share, seed)
    assert {label for label, stays in zip(labels, kept, strict=True) if stays} == set(labels)
    assert all(len(parts) == 1 for parts in parts_of_groups(groups, kept).values())
    assert (keep_share(labels, groups, share, seed) == kept).all()


def test_a_share_is_about_as_large_as_it_says() -> None:
    labels = ["a"] * 200 + ["b"] * 100
    groups = [f"g{i // 2}" for i in range(300)]
    for share in (0.1, 0.25, 0.5):
        kept = keep_share(labels, groups, share, 0)
        assert np.isclose(kept[:200].mean(), share, atol=0.02) and np.isclose(kept[200:].mean(), share, atol=0.02)
    assert (keep_share(labels, groups, 0.25, 0) != keep_share(labels, groups, 0.25, 1)).any()
    with pytest.raises(InputError, match="share of 0"):
        keep_share(labels, groups, 0, 0)


def test_a_share_of_the_images_is_a_share_of_the_patients() -> None:
    """One patient with a quarter of a class's images does not stand for a quarter of its patients."""
    sizes = [134, *[30] * 5, *[14] * 18]
    labels = [name for name in ("a", "b") for size in sizes for _ in range(size)]
    groups = [f"{name}{i}" for name in ("a", "b") for i, size in enumerate(sizes) for _ in range(size)]
    for share, few in ((0.25, 4), (0.1, 2)):
        for seed in range(3):
            kept = keep_share(labels, groups, share, seed)
            for name in ("a", "b"):
                mine = kept & (np.array(labels) == name)
                assert abs(mine.sum() / (len(labels) / 2) - share) < 0.04
                assert len(set(np.array(groups)[mine])) >= few
