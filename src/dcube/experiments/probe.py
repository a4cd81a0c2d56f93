"""How good each block's features are (linear probes), beside pixels, an untrained network and the pretrained CNN."""

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from dcube.classifier.reader import CnnCovariances, Reader, Step1Covariances, WholeMaps, reader_features
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion, untrained
from dcube.errors import InputError
from dcube.evaluation.intervals import evaluate_predictions, paired_difference
from dcube.evaluation.linear import linear_probe
from dcube.features.covariance import evened
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.features.subnet import SubNetwork, cnn_features
from dcube.files import write_json, write_text
from dcube.progress import progress
from dcube.training.order import key, some
from dcube.training.runtime import pick_device

PIXELS = 32  # side of the raw pixels
MOST = 10_000  # images that are fitted on, and that are asked about: all features of one probe are in memory
Named = tuple[str, str, int | None, np.ndarray]  # model, block, timestep, features [n, d]


def probe(
    data: ImageData, settings: Experiment, diffusion: Diffusion, timesteps: tuple[int, ...], directory: Path,
    split: str = "val", selection: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probe every block at every timestep; leaves probe.csv and probe.json in `directory`.

    A probe is PCA (256) and balanced logistic regression on the block's map, fitted on the training split with C
    tuned inside it, and measured on `split`; of either split MOST images at random where there are more. Models:
    `trained`, `untrained` (the same network as the seed initialises it), `pixels`, `cnn` (the recipe's CNN as it comes)
    and `trained+cnn`, `untrained+cnn`; of both networks also the covariances of all blocks together (block
    `covariances`), and of the CNN (`cnn_covariances`). Each row: model, block, timestep, macro_f1 and accuracy with
    intervals; for the trained network also the paired differences of macro-F1 `over_untrained` (the untrained network
    at the same block and timestep), `over_pixels` and `over_cnn`. With the run's `selection`, the result also says
    whether less Gaussian blocks have better features (`gaussianity`).
    Returns what probe.json holds.
    """
    train, asked = (some(data.indices(name), MOST, settings.seed, "probe") for name in ("train", split))
    groups = np.array(data.groups)
    labels = data.labels[asked]
    how = settings.classifier
    how_sure: dict[str, Any] = settings.evaluation.model_dump(include={"bootstrap", "level"}) | {"seed": settings.seed}
    torch.manual_seed(key(settings.seed, "probe", "cnn"))  # of a CNN without pretrained weights
    network = SubNetwork(how.cnn, how.cnn_weights, how.cnn_size).to(pick_device(settings.runtime.device))
    cnn = cnn_features(network, data, np.concatenate([train, asked]), how.cnn_size)
    held: dict[tuple[str, str, int | None], np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    total = 5 + 4 * len(diffusion.model.blocks) * len(timesteps)
    with progress("probe", total) as advance:
        for model, block, t, features in _all_features(data, settings, diffusion, timesteps, train, asked, cnn):
            probabilities = linear_probe(
                features[: len(train)], data.labels[train], groups[train], features[len(train) :],
                classes=len(data.classes), seed=settings.seed,
            )  # fmt: skip
            held[model, block, t] = probabilities
            measured = evaluate_predictions(
                probabilities, labels, groups[asked], data.classes,
                **how_sure,
            )  # fmt: skip
            row: dict[str, Any] = {"model": model, "block": block, "timestep": t}
            row |= {name: measured[name] for name in ("macro_f1", "accuracy")}
            if model.startswith("trained"):
                for name, other in _others(settings, model, block, t).items():
                    row[name] = paired_difference(probabilities, held[other], labels, groups[asked], **how_sure)
            rows.append(row)
            advance(len(rows), f"{model} {block} {measured['macro_f1']['value']:.3f}")
    write_text(directory / "probe.csv", _table(rows))
    result = {"split": split, "n": len(asked), "train": len(train), "rows": rows}
    if selection is not None:
        result["gaussianity"] = gaussianity_agreement(selection, rows)
    write_json(directory / "probe.json", result)
    return result


def gaussianity_agreement(selection: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Does a low p mean better features? Spearman's rank correlation, over the blocks, of sqrt(n) * D (eq. 6) with the
    trained block's best macro-F1; +1: the least Gaussian blocks probe best. Beside it the best block and the chosen.
    """
    best = {
        block["name"]: max(
            row["macro_f1"]["value"] for row in rows if (row["model"], row["block"]) == ("trained", block["name"])
        )
        for block in selection["blocks"]
    }
    distance = [np.sqrt(block["n"]) * block["D"] for block in selection["blocks"]]
    spread = len(set(best.values())) > 1 and len(set(distance)) > 1  # else there is no order to agree with
    return {
        "spearman": float(spearmanr(distance, list(best.values())).statistic) if spread else None,
        "best_block": max(best, key=lambda name: best[name]),
        "selected": [selection["blocks"][i]["name"] for i in selection["selected"]],
    }


def _all_features(
    data: ImageData, settings: Experiment, diffusion: Diffusion, timesteps: tuple[int, ...], train: np.ndarray,
    asked: np.ndarray, cnn: np.ndarray,
) -> Iterator[Named]:  # fmt: skip
    """Of the training images, then of those that are asked about. The untrained network comes before the trained one,
    so that each can be compared with its twin.
    """
    how, rows = settings.classifier, np.concatenate([train, asked])

    def covariances(reader: Reader, whole: WholeMaps | None) -> np.ndarray:
        features = reader_features(reader.to(diffusion.device), data, rows, how, whole)
        features *= evened(features[: len(train)], reader.widths)
        return features

    yield "pixels", f"{PIXELS}x{PIXELS}", None, data.images(rows, PIXELS).flatten(1).numpy()
    yield "cnn", how.cnn, None, cnn
    with contextlib.suppress(InputError):  # a CNN without such maps
        torch.manual_seed(key(settings.seed, "probe", "cnn"))  # the same one
        yield "cnn_covariances", how.cnn, None, covariances(CnnCovariances(how, len(data.classes)), None)
    scaled = cnn / (cnn[: len(train)].std() + 1e-8)
    balance = scaled[: len(train)].var(0).sum()
    begun = untrained(diffusion.config, diffusion.channels, diffusion.classes, settings.seed, diffusion.device)
    for model, network in (("untrained", begun), ("trained", diffusion)):
        for index, block in enumerate(network.model.blocks):
            for t in timesteps:
                frozen = FrozenFeatures(network, [index], settings.features.input, how.grid)
                [features] = flat_features(frozen, data, rows, [t])
                yield model, block, t, features
                # both at unit variance in sum, so that the PCA does not see the larger one alone
                weight = np.sqrt(balance / (features[: len(train)].var(0).sum() + 1e-12))
                yield f"{model}+cnn", block, t, np.concatenate([features * weight, scaled], axis=1)
        whole = WholeMaps(network, settings.features.model_copy(update={"eval_timesteps": timesteps}))
        reader = Step1Covariances(whole.channels, len(data.classes))
        yield model, "covariances", whole.timestep, covariances(reader, whole)


def _others(
    settings: Experiment, model: str, block: str, t: int | None
) -> dict[str, tuple[str, str, int | None]]:
    """What a probe of the trained network is compared with: name of the difference -> model, block, timestep."""
    return {
        "over_untrained": (model.replace("trained", "untrained", 1), block, t),
        "over_pixels": ("pixels", f"{PIXELS}x{PIXELS}", None),
        "over_cnn": ("cnn", settings.classifier.cnn, None),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    """CSV: a figure, its low and high in columns of their own; empty where there is none."""
    figures = ("macro_f1", "accuracy", "over_untrained", "over_pixels", "over_cnn")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "block", "timestep", *(f"{f}{end}" for f in figures for end in ("", "_low", "_high"))])
    for row in rows:
        values = [row[f][part] if f in row else None for f in figures for part in ("value", "low", "high")]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        writer.writerow([row["model"], row["block"], "" if row["timestep"] is None else row["timestep"], *cells])
    return text.getvalue()
