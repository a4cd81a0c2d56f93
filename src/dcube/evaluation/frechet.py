"""Distance of two sets of features as if both were Gaussian."""

import numpy as np


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Frechet (2-Wasserstein) distance, squared, of the Gaussians with the sets' means and covariances
    (Dowson & Landau 1982; Heusel et al. 2017): |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2).

    features_a: [n, d]; features_b: [m, d], n and m at least 2, also below d. In float64, by symmetric
    eigen-decompositions, in which rounding cannot make a root complex. ValueError for other shapes.
    """
    a, b = (np.asarray(f, dtype=np.float64) for f in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be [n, d] and [m, d] with n, m > 1, not {a.shape} and {b.shape}")
    covariance_a, covariance_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(covariance_a)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ covariance_b @ root).clip(min=0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return float(max(0.0, apart + np.trace(covariance_a) + np.trace(covariance_b) - 2 * both))
