"""Scarce training images: who is left out, and what must not move."""

import numpy as np
import pytest

from dcube.data.dataset import ImageData
from dcube.data.scarcity import LEFT_OUT, scarce
from tiny import tiny_data


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return tiny_data(tmp_path_factory.mktemp("many") / "store", counts=(80, 60, 40))


def counts(data: ImageData, splits: np.ndarray) -> np.ndarray:
    return np.bincount(data.labels[splits == "train"], minlength=3)


def test_a_share_of_every_class(many: ImageData) -> None:
    cut = scarce(many.store, many.splits, 0, share=0.25)
    np.testing.assert_allclose(counts(many, cut) / counts(many, many.splits), 0.25, atol=0.03)
    unlike = cut != many.splits
    assert set(cut[unlike]) == {LEFT_OUT} and set(many.splits[unlike]) == {"train"}
    assert (scarce(many.store, many.splits, 0, share=0.25) == cut).all()
    assert (scarce(many.store, many.splits, 1, share=0.25) != cut).any()


def test_the_rarest_class_alone(many: ImageData) -> None:
    whole = counts(many, many.splits)
    cut = counts(many, scarce(many.store, many.splits, 0, rarest=0.1))
    assert (cut[:2] == whole[:2]).all() and cut[2] == round(0.1 * whole[2])
    both = counts(many, scarce(many.store, many.splits, 0, share=0.5, rarest=0.1))
    assert abs(both[0] - whole[0] / 2) <= 1 and both[2] in (1, 2)


def test_every_class_keeps_a_group(data: ImageData) -> None:
    cut = counts(data, scarce(data.store, data.splits, 0, share=0.01, rarest=0.01))
    assert cut.tolist() == [1, 1, 1]
    assert (scarce(data.store, data.splits, 0) == data.splits).all()
