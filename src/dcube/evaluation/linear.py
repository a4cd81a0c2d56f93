"""Linear models on given features, their strength tuned inside the training set: floors and probes."""

import warnings

import numpy as np
from numpy.typing import NDArray
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
    pca = PCA(min(components, len(train) - 1, train.shape[1]), svd_solver="randomized", random_state=seed)
    seen, asked = pca.fit_transform(train).astype(np.float64), pca.transform(features).astype(np.float64)
    scale = seen.std() + 1e-12
    return _tuned(seen / scale, labels, groups, asked / scale, classes, seed)


def tuned_regression(
    train: Floats, labels: Ints, groups: NDArray[np.str_], features: Floats, *, classes: int, seed: int
) -> Floats:
    """Probabilities [N, K] of a balanced logistic regression whose C is tuned by group-wise folds inside train."""
    return _tuned(train, labels, groups, features, classes, seed)[0]


def _tuned(
    train: Floats, labels: Ints, groups: NDArray[np.str_], features: Floats, classes: int, seed: int
) -> tuple[Floats, float]:
    strength, inside = tuned_strength(train, labels, groups, classes, seed)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300, tol=1e-3)
    model = fit_quietly(model, train, labels)
    return spread(model.predict_proba(features), model.classes_, classes), inside


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
