"""Linear models on given features, their strength tuned inside the training set: floors and probes."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from dcube.evaluation.metrics import Floats, Ints, macro_f1

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the regression, weakest model first


def linear_probe(
    train: NDArray[np.float32], labels: Ints, groups: NDArray[np.str_], features: NDArray[np.float32],
    *, classes: int, components: int = 256, seed: int = 0,
) -> Floats:  # fmt: skip
    """Probabilities [N, K] of a linear probe: PCA fitted on train, then regularised logistic regression.

    train: [n, d], labels: [n] in 0 .. classes - 1, groups: [n] (kept whole where C is tuned inside train),
    features: [N, d]. Classes count alike, whatever their number of images.
    """
    return tuned_probe(train, labels, groups, features, classes=classes, components=components, seed=seed)[0]


def tuned_probe(
    train: NDArray[np.float32], labels: Ints, groups: NDArray[np.str_], features: NDArray[np.float32],
    *, classes: int, components: int = 256, seed: int = 0,
) -> tuple[Floats, float]:  # fmt: skip
    """`linear_probe`, and its macro-F1 over the folds inside train, by which features can be chosen (nan: no folds)."""
    layer, inside = fit_linear_probe(train, labels, groups, classes=classes, components=components, seed=seed)
    return layer(features), inside


def fit_linear_probe(
    train: NDArray[np.float32], labels: Ints, groups: NDArray[np.str_],
    *, classes: int, components: int = 256, seed: int = 0,
) -> tuple["LinearLayer", float]:  # fmt: skip
    """The probe as the one linear layer that PCA and regression amount to, and its macro-F1 inside train."""
    pca = PCA(min(components, len(train) - 1, train.shape[1]), svd_solver="randomized", random_state=seed)
    seen = pca.fit_transform(train).astype(np.float64)
    scale = seen.std() + 1e-12
    layer, inside = _tuned(seen / scale, labels, groups, classes, seed)
    weight = layer.weight @ pca.components_.astype(np.float64) / scale
    return LinearLayer(weight, layer.bias - weight @ pca.mean_.astype(np.float64)), inside


@dataclass(frozen=True)
class LinearLayer:
    """Logits weight [K, d] @ x + bias [K]; -inf for a class that the training set did not hold."""

    weight: Floats
    bias: Floats

    def __call__(self, features: NDArray[np.floating]) -> Floats:
        """Probabilities [N, K] of features [N, d]."""
        return softmax(features.astype(np.float64) @ self.weight.T + self.bias, axis=1)  # type: ignore[no-any-return]


def tuned_layer(train: Floats, labels: Ints, groups: NDArray[np.str_], *, classes: int, seed: int) -> LinearLayer:
    """A balanced logistic regression on train [n, d] whose C is tuned by group-wise folds inside it."""
    return _tuned(train, labels, groups, classes, seed)[0]


def _tuned(
    train: Floats, labels: Ints, groups: NDArray[np.str_], classes: int, seed: int
) -> tuple[LinearLayer, float]:
    strength, inside = tuned_strength(train, labels, groups, classes, seed)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)
    model = fit_quietly(model, train, labels)
    weight, bias = np.zeros((classes, train.shape[1])), np.full(classes, -np.inf)
    if len(model.classes_) == 2:  # the regression holds the second class against the first
        weight[model.classes_[1]], bias[model.classes_] = model.coef_[0], (0, model.intercept_[0])
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return LinearLayer(weight, bias), inside


def tuned_strength(
    pixels: Floats, labels: Ints, groups: NDArray[np.str_], classes: int, seed: int
) -> tuple[float, float]:
    """The C of STRENGTHS with the best macro-F1 over group-wise folds of the training set (ties: the weaker), and that
    macro-F1 (nan where a class has one group only).
    """
    per_class = [len(np.unique(groups[labels == k])) for k in np.unique(labels)]
    folds = min(5, *per_class)
    if folds < 2:  # a class of one group cannot be both learnt from and tuned on
        return STRENGTHS[len(STRENGTHS) // 2], float("nan")
    predicted = np.zeros((len(STRENGTHS), len(labels)), dtype=np.int64)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, held_out in splitter.split(pixels, labels, groups):
        if len(np.unique(labels[train])) < 2:
            predicted[:, held_out] = labels[train][0]
            continue
        model = LogisticRegression(class_weight="balanced", max_iter=300, tol=1e-3, warm_start=True)
        for row, strength in enumerate(STRENGTHS):  # from weak to strong, each starting where the last ended
            model = fit_quietly(model.set_params(C=strength), pixels[train], labels[train])
            predicted[row, held_out] = model.predict(pixels[held_out])
    scores = [macro_f1(labels, row, classes) for row in predicted]
    return STRENGTHS[int(np.argmax(scores))], float(max(scores))


def fit_quietly(model: LogisticRegression, features: Floats, labels: Ints) -> LogisticRegression:
    with warnings.catch_warnings():  # a floor cut off at 300 iterations is as good a floor
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)


def spread(probabilities: Floats, present: Ints, classes: int) -> Floats:
    """Columns of the classes that training held, put where they belong among all classes."""
    spread = np.zeros((len(probabilities), classes))
    spread[:, present] = probabilities
    return spread
