"""Gaussianity of block features (eq. 6)."""

from functools import cache
from typing import Literal

import numpy as np
from scipy import special, stats

Reading = Literal["channel_mean", "token_mean", "all_values", "per_image"]


def ks_statistic(values: np.ndarray) -> np.ndarray:
    """D = sup |F_n(x) - Phi(x)| of eq. 6 along the last axis of [..., n]; the values are taken as they are."""
    x = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = x.shape[-1]
    cdf = special.ndtr(x)
    above = (np.arange(1, n + 1) / n - cdf).max(axis=-1)
    below = (cdf - np.arange(n) / n).max(axis=-1)
    return np.asarray(np.maximum(above, below))


def ks_test(values: np.ndarray) -> tuple[float, float]:
    """Kolmogorov-Smirnov test of eq. 6: (D, p) of n values against N(0, 1), exact p.

    values: [n]. ValueError for fewer than 2 values or values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("a KS test needs a vector of at least 2 finite values")
    D = float(ks_statistic(values))
    return D, float(np.clip(stats.kstwo.sf(D, len(values)), 0, 1))


def standardise(values: np.ndarray) -> np.ndarray:
    """Zero mean and unit deviation (n - 1) along the last axis; a constant vector stays all zero."""
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean(axis=-1, keepdims=True)
    deviation = values.std(axis=-1, ddof=1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)


def lilliefors_p(D: float, n: int) -> float:
    """p of D when mean and deviation were estimated from the same n values (Lilliefors 1967), by simulation."""
    null = _null_statistics(n)
    return float((1 + np.sum(null >= D)) / (1 + len(null)))


@cache
def _null_statistics(n: int, draws: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(n)
    chunk = max(1, 2_000_000 // n)
    parts = [ks_statistic(standardise(rng.standard_normal((min(chunk, draws - i), n)))) for i in range(0, draws, chunk)]
    return np.concatenate(parts)


def block_sample(feature: np.ndarray, reading: Reading, seed: int = 0) -> np.ndarray:
    """The values of a block that are tested, standardised: [n], or [B, n] for `per_image`.

    feature: [B, C, h, w]. `channel_mean`, our reading of figure 2: averages over batch and positions,
    n = C. `token_mean`: averages over batch and channels, n = h * w. `all_values`: 512 drawn at random.
    `per_image`: every image's values on their own (512 drawn), p averaged over the images.
    """
    if reading == "channel_mean":
        return standardise(feature.mean(axis=(0, 2, 3), dtype=np.float64))
    if reading == "token_mean":
        return standardise(feature.mean(axis=(0, 1), dtype=np.float64).ravel())
    rng = np.random.default_rng(seed)
    if reading == "all_values":
        return standardise(rng.choice(feature.ravel(), min(512, feature.size), replace=False))
    flat = feature.reshape(len(feature), -1)
    return standardise(flat[:, rng.permutation(flat.shape[1])[:512]])


def gaussianity(feature: np.ndarray, reading: Reading = "channel_mean") -> dict[str, float]:
    """Eq. 6 for one block: {"n", "D", "p", "p_lilliefors"}; averages over the images for `per_image`.

    feature: [B, C, h, w]. `p` is the paper's, which ignores that mean and deviation are estimated;
    `p_lilliefors` does not.
    """
    rows = np.atleast_2d(block_sample(feature, reading))
    if not rows.any():  # a dead block is constant: nothing in it to read, so it must not count as least Gaussian
        return {"n": rows.shape[1], "D": 0.0, "p": 1.0, "p_lilliefors": 1.0}
    tests = [ks_test(row) for row in rows]
    n = rows.shape[1]
    return {
        "n": n,
        "D": float(np.mean([D for D, _ in tests])),
        "p": float(np.mean([p for _, p in tests])),
        "p_lilliefors": float(np.mean([lilliefors_p(D, n) for D, _ in tests])),
    }
