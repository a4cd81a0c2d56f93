"""Pixels on their way from the store to a model."""

import numpy as np
import pytest
import torch

from dcube.data.dataset import cell_means, resize


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("cell", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_means_of_stored_pixels_are_those_of_their_floats(dtype: type, cell: int, channels: int) -> None:
    top = np.iinfo(dtype).max
    stored = np.random.default_rng(0).integers(0, top + 1, (5, channels, 24, 24)).astype(dtype)
    stored[0] = top  # the largest sum
    size = 24 // cell
    expected = stored.reshape(5, channels, size, cell, size, cell).astype(np.float64).mean((3, 5)) / top
    found = cell_means(stored, cell)
    assert found.dtype == np.float32 and found.max() <= 1
    np.testing.assert_allclose(found, expected, rtol=3e-7)
    floats = torch.from_numpy(stored.astype(np.float32) / np.float32(top))
    np.testing.assert_allclose(found, resize(floats, size).numpy(), rtol=2e-6)
