"""A probe as one linear layer equals PCA and regression one after the other."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from dcube.evaluation.linear import fit_linear_probe, linear_probe, tuned_strength


@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (1, 2)])
def test_the_layer_is_pca_then_regression(present: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(present, 20)
    train = (rng.normal(size=(len(labels), 30)) + labels[:, None] + 3).astype(np.float32)
    asked = (rng.normal(size=(9, 30)) + 4).astype(np.float32)
    groups = np.arange(len(labels)).astype(str)
    layer, inside = fit_linear_probe(train, labels, groups, classes=3, components=8, seed=1)
    pca = PCA(8, svd_solver="randomized", random_state=1)
    seen = pca.fit_transform(train).astype(np.float64)
    scale = seen.std()
    strength, expected_inside = tuned_strength(seen / scale, labels, groups, 3, 1)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3).fit(seen / scale, labels)
    expected = np.zeros((9, 3))
    expected[:, list(present)] = model.predict_proba(pca.transform(asked).astype(np.float64) / scale)
    assert inside == pytest.approx(expected_inside)
    np.testing.assert_allclose(layer(asked), expected, atol=1e-5)
    np.testing.assert_array_equal(
        linear_probe(train, labels, groups, asked, classes=3, components=8, seed=1), layer(asked)
    )
    assert layer(asked)[:, [k for k in range(3) if k not in present]].sum() == 0
