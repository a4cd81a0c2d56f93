"""Partners: equal chance of same and other class, whatever the imbalance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcube.data.pairs import PairSampler
from dcube.errors import InputError

LABEL_LISTS = st.lists(st.integers(0, 4), min_size=2, max_size=40).filter(lambda labels: len(set(labels)) > 1)


@settings(max_examples=100, deadline=None)
@given(labels=LABEL_LISTS, seed=st.integers(0, 100))
def test_partners_are_what_they_say(labels: list[int], seed: int) -> None:
    array = np.array(labels)
    indices = np.arange(len(array)).repeat(10)
    partner, same = PairSampler(array).partners(indices, np.random.default_rng(seed))
    np.testing.assert_array_equal(array[partner] == array[indices], same)
    alone = np.bincount(array)[array[indices]] == 1
    assert (partner[same & ~alone] != indices[same & ~alone]).all()
    assert (partner[same & alone] == indices[same & alone]).all()
    assert partner.dtype == np.int64 and same.dtype == bool


def test_chances() -> None:
    labels = np.array([0] * 1 + [1] * 4 + [2] * 95)
    draws = 60_000
    for index in (0, 2, 50):
        partner, same = PairSampler(labels).partners(np.full(draws, index), np.random.default_rng(1))
        assert same.mean() == pytest.approx(0.5, abs=0.01)
        others = labels[partner[~same]]
        for label in set(labels.tolist()) - {int(labels[index])}:  # each other class equally often
            assert (others == label).mean() == pytest.approx(0.5, abs=0.02)
        within = np.bincount(partner, minlength=100)
        for label in range(3):  # and uniform inside a class
            members = np.setdiff1d(np.flatnonzero(labels == label), [index])
            if len(members):
                assert within[members].max() < 1.5 * within[members].mean()
                assert within[members].min() > 0.5 * within[members].mean()


def test_same_randomness_gives_the_same_pairs() -> None:
    sampler = PairSampler(np.array([0, 0, 1, 1, 5]))
    first, second = (sampler.partners(np.arange(5), np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="at least two classes"):
        PairSampler(np.zeros(5, int))
