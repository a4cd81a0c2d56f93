"""Which sample belongs to a step: a function of (seed, step) alone."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dcube.training.order import Order, drawn, key, numpy_rng, torch_rng

labels_of = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(np.array)


def stream(order: Order, positions: int) -> np.ndarray:
    """The first `positions` samples."""
    steps = -(-positions // order.batch_size)
    return np.concatenate([order.batch(step) for step in range(steps)])[:positions]


@settings(max_examples=30, deadline=None)
@given(labels=labels_of, batch_size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation(labels: np.ndarray, batch_size: int, seed: int) -> None:
    n = len(labels)
    epochs = stream(Order(labels, batch_size, seed), 3 * n).reshape(3, n)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))


def test_epochs_differ_and_so_do_seeds() -> None:
    epochs = stream(Order(np.zeros(50, int), 5, seed=0), 100).reshape(2, 50)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], stream(Order(np.zeros(50, int), 5, seed=1), 50))


@settings(max_examples=30, deadline=None)
@given(labels=labels_of, batch_size=st.integers(1, 9), seed=st.integers(0, 5))
def test_balanced_order_gives_every_class_the_same_count(labels: np.ndarray, batch_size: int, seed: int) -> None:
    """In each run of K positions every class comes once; within a class each image comes equally often."""
    present, counts = np.unique(labels, return_counts=True)
    rounds = 3 * int(counts.max())
    drawn = stream(Order(labels, batch_size, seed, balanced=True), rounds * len(present))
    by_round = np.sort(labels[drawn].reshape(rounds, len(present)), axis=1)
    assert np.array_equal(by_round, np.tile(present, (rounds, 1)))
    for label in present:
        often = np.bincount(drawn[labels[drawn] == label], minlength=len(labels))[labels == label]
        assert often.max() - often.min() <= 1


@settings(max_examples=20, deadline=None)
@given(labels=labels_of, steps=st.permutations(list(range(8))), balanced=st.booleans())
def test_a_batch_depends_on_the_step_alone(labels: np.ndarray, steps: list[int], balanced: bool) -> None:
    used = Order(labels, 4, 7, balanced)
    for step in steps:
        assert np.array_equal(used.batch(step), Order(labels, 4, 7, balanced).batch(step))


def test_classes_of_a_round_come_in_random_order() -> None:
    labels = np.repeat([0, 1, 2], 4)
    first = labels[stream(Order(labels, 3, 0, balanced=True), 90)].reshape(30, 3)[:, 0]
    assert len(set(first.tolist())) == 3


def test_keys_do_not_depend_on_the_process() -> None:
    """Python's own hash() does; a resumed run would then draw other numbers."""
    code = "from dcube.training.order import key; print(key(3, 'noise', 17))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == key(3, "noise", 17)
    assert len({key(s, p, k) for s in range(5) for p in "ab" for k in range(5)}) == 50
    assert key(1, 23) != key(12, 3)
    assert torch_rng(1, "a").initial_seed() == key(1, "a") < 2**63
    assert numpy_rng(1, "a").random() == np.random.default_rng(key(1, "a")).random()


def test_a_part_of_the_rows_holds_some_of_every_class() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 3)
    rows = np.random.default_rng(0).permutation(len(labels))
    part = drawn(rows, labels[rows], 200)
    assert len(part) == len(set(part.tolist())) == 200
    counts = np.bincount(labels[part], minlength=3)
    assert counts[2] == 3 and counts[1] >= 50 and counts[0] > 100
    place = {row: i for i, row in enumerate(rows.tolist())}
    assert [place[r] for r in part.tolist()] == sorted(place[r] for r in part.tolist()), "in their random order"
    assert drawn(rows, labels[rows], len(rows)) is rows
    assert set(labels[drawn(rows, labels[rows], 4)]) == {0, 1, 2}
