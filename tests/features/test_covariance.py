"""Log-covariances of maps: closed forms, invariances, and what evens the maps out."""

import numpy as np
import pytest
import torch
from scipy.linalg import logm

from dcube.features.covariance import CHANNELS, RIDGE, LogCovariance, evened


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_matrix_logarithm_of_the_covariance() -> None:
    found = maps(3, 5, 6, 4)
    features = LogCovariance([5])([found])
    assert features.shape == (3, 15) and features.dtype == torch.float64
    for image, row in zip(found, features, strict=True):
        covariance = np.cov(image.flatten(1).numpy(), bias=True)
        covariance += np.eye(5) * (RIDGE * np.diag(covariance).mean() + 1e-12)
        expected = logm(covariance)
        np.testing.assert_allclose(np.diag(expected), row[[0, 5, 9, 12, 14]].numpy(), atol=1e-9)
        assert row.norm().item() == pytest.approx(np.linalg.norm(expected), abs=1e-9)  # its triangle keeps lengths


def test_where_things_lie_and_how_bright_they_are_does_not_count() -> None:
    found, reader = maps(2, 4, 8, 8), LogCovariance([4])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    elsewhere = found.flatten(2)[:, :, order].unflatten(2, (8, 8))
    torch.testing.assert_close(reader([elsewhere]), reader([found]))
    torch.testing.assert_close(reader([found + 3]), reader([found]))
    scaled = reader([found * 2]) - reader([found])  # log(4) on the diagonal, nothing beside it
    expected = torch.zeros_like(scaled)
    expected[:, [0, 4, 7, 9]] = np.log(4)
    torch.testing.assert_close(scaled, expected)


def test_wide_maps_are_mixed_and_few_places_give_no_infinity() -> None:
    reader = LogCovariance([CHANNELS + 40, 3])
    assert reader.widths == [CHANNELS * (CHANNELS + 1) // 2, 6]
    found = [maps(2, CHANNELS + 40, 2, 2), torch.zeros(2, 3, 1, 1, dtype=torch.float64)]
    features = reader([m.float() for m in found])
    assert features.shape == (2, sum(reader.widths)) and features.dtype == torch.float32
    assert features.isfinite().all()
    torch.testing.assert_close(features, LogCovariance([CHANNELS + 40, 3])([m.float() for m in found]))  # fixed mixing
    alone = torch.cat([reader([m[i : i + 1].float() for m in found]) for i in range(2)])
    torch.testing.assert_close(alone, features, atol=1e-4, rtol=1e-4)


def test_every_map_counts_alike() -> None:
    train = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * [1, 1, 100, 100, 100, 100, 0.01]
    evened_out = train * evened(train.astype(np.float32), [2, 4, 1])
    for part in np.split(evened_out, [2, 6], axis=1):
        assert part.var(0).sum() == pytest.approx(1, rel=1e-4)
    assert np.array_equal(evened(train.astype(np.float32), ()), np.ones(7))
    many = np.tile(train.astype(np.float32), (40, 1))
    many[:, :2] = np.log(1e-12)  # a map without any variation
    assert np.array_equal(evened(many, [2, 4, 1]) > 0, [False, False, *5 * [True]])
