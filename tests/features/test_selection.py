"""The rules of the selector on planted features, and the selection of a model."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.features.selection import GaussianitySelector, check_probed, sample_features, select_blocks
from tiny import tiny_diffusion, tiny_experiment

WIDTHS = (64, 32, 64, 128, 64)


def planted(strange: dict[int, float]) -> dict[str, np.ndarray]:
    """Blocks whose channel means are exact normal quantiles; `strange`: with a cluster of that share far away."""
    features = {}
    for i, width in enumerate(WIDTHS):
        means = stats.norm.ppf((np.arange(width) + 0.5) / width) * (1 + 0.01 * i)
        if i in strange:
            means[: int(strange[i] * width)] = 6.0
        wobble = np.random.default_rng(i).standard_normal((4, width, 3, 3))
        wobble -= wobble.mean(axis=(0, 2, 3), keepdims=True)
        features[f"block{i}"] = means[None, :, None, None] + wobble
    return features


def test_blocks_that_are_not_gaussian_are_selected() -> None:
    selector = GaussianitySelector(alpha=0.05).fit(planted({1: 0.3, 3: 0.4}))
    assert selector.selected_ == [1, 3] and selector.rule_ == "p < alpha"
    p = [block["p"] for block in selector.results_]
    assert all((p[i] < 0.05) == (i in (1, 3)) for i in range(5))
    assert [block["name"] for block in selector.results_] == [f"block{i}" for i in range(5)]


def test_rank_is_by_root_n_times_D() -> None:
    """D of Gaussian values falls with sqrt(n): a wide block with the smaller D can be the less Gaussian one."""
    results = GaussianitySelector().fit(planted({1: 0.3, 3: 0.25})).results_
    score = [np.sqrt(block["n"]) * block["D"] for block in results]
    expected = 1 + np.argsort(np.argsort(-np.array(score)))
    assert [block["rank"] for block in results] == expected.tolist()
    assert results[3]["rank"] == 1 and results[3]["D"] < results[1]["D"]


def test_without_any_the_k_least_gaussian_are_taken() -> None:
    selector = GaussianitySelector(alpha=1e-12, top_k=2).fit(planted({0: 0.3, 4: 0.2}))
    assert selector.selected_ == [0, 4] and selector.rule_ == "k least Gaussian"
    assert GaussianitySelector(alpha=1e-12, top_k=99).fit(planted({})).selected_ == [0, 1, 2, 3, 4]


def test_worst_selection_takes_the_most_gaussian() -> None:
    selector = GaussianitySelector(top_k=3, select="most_gaussian").fit(planted({1: 0.3, 3: 0.4}))
    assert selector.selected_ == [0, 2, 4] and selector.rule_ == "most Gaussian"


def test_a_forced_choice() -> None:
    selector = GaussianitySelector(blocks=(4, 0, 4)).fit(planted({1: 0.3}))
    assert selector.selected_ == [0, 4] and selector.rule_ == "forced"


@pytest.mark.parametrize("blocks", [(5,), (-1,), (1, 99), ()])
def test_a_forced_block_that_is_not_there(blocks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"this model has blocks 0 \.\. 4"):
        GaussianitySelector(blocks=blocks).fit(planted({}))


def test_selection_of_a_model(data: ImageData) -> None:
    diffusion, settings = tiny_diffusion(), tiny_experiment().features
    found = select_blocks(diffusion, data, settings, seed=0)
    assert found == json.loads(json.dumps(found)) == select_blocks(diffusion, data, settings, seed=0)
    assert (found["reading"], found["timestep"], found["alpha"]) == ("channel_mean", 10, 0.05)
    assert found["images"] == len(data.indices("train"))
    assert [block["name"] for block in found["blocks"]] == list(diffusion.model.blocks)
    assert [block["index"] for block in found["blocks"]] == list(range(5))
    assert [block["n"] for block in found["blocks"]] == [8, 16, 16, 16, 8]
    for weight in (0.0, 1.0):
        config = tiny_experiment(diffusion={"contrastive": {"weight": weight}}).diffusion
        told = select_blocks(tiny_diffusion(config=config), data, settings, seed=0)["labels_told"]
        assert told is (weight > 0)


def test_probes_need_two_groups_of_every_class(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_experiment(features={"select": "probe", "top_k": 2}).features
    assert select_blocks(tiny_diffusion(), data, settings, seed=0)["rule"] == "best probe inside train"
    alone = ["all" if label == 0 else group for group, label in zip(data.groups, data.labels, strict=True)]
    monkeypatch.setattr(data, "groups", alone)
    with pytest.raises(InputError, match="a single group in the training split; take features.select=least_gaussian"):
        select_blocks(tiny_diffusion(), data, settings, seed=0)


def test_only_training_images_are_looked_at(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    images = data.images

    def watched(indices: Any, size: int) -> Any:
        seen.extend(np.asarray(indices).tolist())
        return images(indices, size)

    monkeypatch.setattr(data, "images", watched)
    settings = tiny_experiment(features={"batch_size": 10}).features
    features = sample_features(tiny_diffusion(), data, settings, seed=0)
    assert len(seen) == len(set(seen)) == 10 and set(seen) <= set(data.indices("train").tolist())
    assert all(len(feature) == 10 for feature in features.values())


def test_probes_that_cannot_choose_are_refused_before_step_1(data: ImageData) -> None:
    config = tiny_experiment(features={"select": "probe"}).features
    check_probed(config, data)
    alone = ImageData(data.store, np.where(data.labels == 0, data.splits, "train"))
    rows = np.flatnonzero(data.labels == 0)
    splits = alone.splits.copy()
    splits[rows] = "val"
    splits[np.array(data.groups) == data.groups[rows[0]]] = "train"
    with pytest.raises(InputError, match="a class has a single group in the training split"):
        check_probed(config, ImageData(data.store, splits))
    check_probed(config.model_copy(update={"select": "least_gaussian"}), ImageData(data.store, splits))
