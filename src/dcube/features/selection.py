"""Which blocks the classifier reads (eq. 6, figure 2, table VI)."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from dcube.config import FeaturesConfig
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion
from dcube.errors import InputError
from dcube.evaluation.linear import tuned_probe
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.features.gaussianity import Reading, gaussianity
from dcube.features.taps import block_maps
from dcube.training.order import drawn, numpy_rng

CHUNK = 32  # images per forward
PROBE_IMAGES = 2000  # training images of select="probe" at most
SINGLE = (
    "features.select=probe judges blocks by folds between groups, but a class has a single group in the training split;"
    " take features.select=least_gaussian, or name features.blocks."
)
PROBE_RASTER = 8  # side of the map that a probe flattens


class GaussianitySelector:
    """Keeps the blocks that are not Gaussian: p < alpha, or the `top_k` least Gaussian where none is.

    A scikit-learn-like selector: `GaussianitySelector(alpha=0.05).fit(features).selected_`.
    After `fit`: `results_` (one dict per block: index, name, n, D, p, p_lilliefors, rank; rank 1 is the least
    Gaussian by sqrt(n) * D, since D under the null falls with sqrt(n)), `selected_` (indices, ascending), `rule_`.
    `select="most_gaussian"` takes the `top_k` most Gaussian ones (table VI, "worst selection"); any other value is the
    criterion of eq. 6.
    """

    def __init__(
        self, alpha: float = 0.05, top_k: int = 3, reading: Reading = "channel_mean", select: str = "least_gaussian",
        blocks: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.alpha, self.top_k, self.reading, self.select, self.blocks = alpha, top_k, reading, select, blocks

    def fit(self, features: Mapping[str, np.ndarray]) -> Self:
        """features: {block name: [B, C, h, w]} in the order of the blocks. InputError for a forced block not there."""
        results: list[dict[str, Any]] = [
            {"index": i, "name": name, **gaussianity(np.asarray(feature), self.reading)}
            for i, (name, feature) in enumerate(features.items())
        ]
        order = sorted(results, key=lambda block: -np.sqrt(block["n"]) * block["D"])
        for rank, block in enumerate(order, 1):
            block["rank"] = rank
        below = [block["index"] for block in results if block["p"] < self.alpha]
        if self.blocks is not None:
            wrong = [b for b in self.blocks if not 0 <= b < len(results)]
            if wrong or not self.blocks:
                raise InputError(f"features.blocks={list(self.blocks)}: this model has blocks 0 .. {len(results) - 1}.")
            self.rule_, chosen = "forced", list(self.blocks)
        elif self.select == "most_gaussian":
            self.rule_, chosen = "most Gaussian", [block["index"] for block in order[-self.top_k :]]
        elif below:
            self.rule_, chosen = "p < alpha", below
        else:
            self.rule_, chosen = "k least Gaussian", [block["index"] for block in order[: self.top_k]]
        self.results_, self.selected_ = results, sorted(set(chosen))
        return self


def select_blocks(diffusion: Diffusion, data: ImageData, config: FeaturesConfig, seed: int) -> dict[str, Any]:
    """Figure 2 for this model: test every block on training images, x_0 with one t. Returns `selection.json`.

    With select="probe" the `top_k` blocks are those whose linear probes are best by folds inside the training split;
    the test is made all the same, and stands beside the probes. Such probes promise more than they keep where a term of
    step 1 was told the labels of those images (`labels_told`; docs/step1.md). InputError where a class has a single
    group, between which no folds can be made.
    """
    features = sample_features(diffusion, data, config, seed)
    selector = GaussianitySelector(config.alpha, config.top_k, config.reading, config.select, config.blocks)
    selector.fit(features)
    if config.select == "probe" and config.blocks is None:
        scores = [probe_score(diffusion, data, config, i, config.timestep, seed) for i in range(len(features))]
        if np.isnan(scores).any():
            raise InputError(SINGLE)
        for block, score in zip(selector.results_, scores, strict=True):
            block["probe"] = score
        best = np.argsort([-score for score in scores], kind="stable")[: config.top_k]
        selector.rule_, selector.selected_ = "best probe inside train", sorted(best.tolist())
    return {
        "reading": config.reading, "timestep": config.timestep, "images": len(next(iter(features.values()))),
        "labels_told": diffusion.config.contrastive.weight > 0, "alpha": config.alpha, "rule": selector.rule_,
        "selected": selector.selected_, "blocks": selector.results_,
    }  # fmt: skip


def check_probed(config: FeaturesConfig, data: ImageData) -> None:
    """InputError, before step 1 is trained, where probes are to choose the blocks and cannot."""
    train, groups = data.indices("train"), np.array(data.groups)
    owners = [len(set(groups[train[data.labels[train] == k]].tolist())) for k in range(len(data.classes))]
    if config.select == "probe" and config.blocks is None and 1 in owners:
        raise InputError(SINGLE)


def probe_score(
    diffusion: Diffusion, data: ImageData, config: FeaturesConfig, block: int, timestep: int, seed: int
) -> float:
    """Macro-F1 of a block's linear probe by group-wise folds inside the training split."""
    shuffled = numpy_rng(seed, "probe").permutation(data.indices("train"))
    rows = np.sort(drawn(shuffled, data.labels[shuffled], PROBE_IMAGES))
    [features] = flat_features(FrozenFeatures(diffusion, [block], config.input, PROBE_RASTER), data, rows, [timestep])
    labels, groups = data.labels[rows], np.array(data.groups)[rows]
    return tuned_probe(features, labels, groups, features[:1], classes=len(data.classes), seed=seed)[1]


def sample_features(
    diffusion: Diffusion, data: ImageData, config: FeaturesConfig, seed: int
) -> dict[str, np.ndarray]:
    """Features {block: [B, C, h, w]} of at most `features.batch_size` training images, drawn by the seed."""
    train = data.indices("train")
    drawn = np.sort(numpy_rng(seed, "gaussianity").permutation(train)[: config.batch_size])
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in diffusion.model.blocks}
    for start in range(0, len(drawn), CHUNK):
        images = data.images(drawn[start : start + CHUNK], diffusion.config.image_size).to(diffusion.device)
        t = torch.full((len(images),), config.timestep, device=diffusion.device)
        for name, feature in zip(chunks, block_maps(diffusion, images, t, diffusion.model.blocks), strict=True):
            chunks[name].append(feature.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in chunks.items()}
