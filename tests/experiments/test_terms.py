"""The terms of a benchmark: what is the same for all, who takes part, and what is tried of each."""

from pathlib import Path

import pytest
from benchmark_child import terms_of

from dcube.baselines.registry import REGISTRY
from dcube.benchmark import check_models_of, make_terms
from dcube.classifier.batches import cache_pays
from dcube.errors import InputError
from dcube.experiments.benchmark.field import FLOORS, MOST_TRIES, configurations, names, title
from dcube.experiments.benchmark.systems import budget_of
from dcube.experiments.benchmark.terms import Unit
from dcube.reproduce import study_settings
from dcube.settings import override
from dcube.training.budget import Budget


@pytest.mark.parametrize("models", ["dcube+knn", "dcube,knn,dcube+knn+majority", "dcube,dcube+"])
def test_what_cannot_be_joined(models: str) -> None:
    with pytest.raises(InputError, match="joins systems by their answers; name each of them in --models too"):
        check_models_of(models.split(","), terms_of())


def test_the_recipe_s_own_extras_are_not_for_d_cube_alone() -> None:
    """Sizes, a second reader, compiled parts: what another system could not have."""
    terms = make_terms(size=48, budget="3min")
    assert {terms.settings.diffusion.image_size, terms.settings.classifier.cnn_size} == {48}
    assert terms.settings.diffusion.align.size == 48 and terms.settings.diffusion.align.weight > 0
    assert terms.settings.classifier.second_reader == 0 and not terms.settings.classifier.covariance_readers
    assert terms.settings.runtime.compile == "never"
    assert make_terms(overrides=["classifier.second_reader=16"]).settings.classifier.second_reader == 16
    with pytest.raises(InputError, match="give --size, not diffusion.align.size"):
        make_terms(overrides=["diffusion.align.size=128"], size=48)
    for change in ("evaluation.floors=false", "evaluation.without=[[normal]]"):
        for make in (make_terms, study_settings):
            with pytest.raises(InputError, match="changes what `dcube fit` shows, and nothing here; leave it out"):
                make("small", [change])
    with pytest.raises(InputError, match="leave diffusion.augmentation out"):
        make_terms(overrides=["diffusion.augmentation.probability=0.1", "diffusion.align.weight=0"])


def test_one_word_for_the_first_weights_of_all() -> None:
    """Also of D-Cube's CNN and of the floors that read it; a setting of one's own wins."""
    assert make_terms(weights=["none"]).settings.classifier.cnn_weights == "none"
    assert make_terms(weights=["resnet18=none"]).settings.classifier.cnn_weights == "auto"
    own = make_terms("small", ["classifier.cnn_weights=offline"], weights=["none"])
    assert own.settings.classifier.cnn_weights == "offline"


def test_a_short_budget_goes_without_a_cache() -> None:
    """A cache holds every timestep of every image and of its mirror image; a step needs one, or for eq. 8 two."""
    given = ["classifier.optimizer.batch_size=10", "features.timesteps=[1,2,3,4]", "classifier.lambda_consistency=1"]
    both = override(terms_of().settings, given)
    plain = override(both, ["classifier.lambda_consistency=0"])
    assert cache_pays(41, both, 100) and not cache_pays(40, both, 100)
    assert cache_pays(81, plain, 100) and not cache_pays(80, plain, 100)
    unmirrored = override(plain, ["data.horizontal_flip=false", "diffusion.augment=false"])
    assert cache_pays(41, unmirrored, 100) and not cache_pays(40, unmirrored, 100)
    assert not cache_pays(10**9, override(both, ["features.timesteps=null"]), 100)


@pytest.mark.parametrize("model", names())
def test_every_name_has_a_title_and_as_many_configurations(model: str) -> None:
    settings = terms_of().settings
    found = configurations(model, settings, "equal", MOST_TRIES)
    assert title(model) and len({c.text for c in found}) == len(found)
    assert len(found) == (1 if model in FLOORS else MOST_TRIES)
    assert len(configurations(model, settings, "paper", MOST_TRIES)) == 1


@pytest.mark.parametrize(("name", "optimizer"), [("shufflenet_v2", "sgd"), ("vit_b16", "adamw"), ("diffmic", "adam")])
def test_the_recipes_of_the_paper(name: str, optimizer: str) -> None:
    unit = Unit(Path("out"), "tiny", Path("store"), terms_of(recipes="paper", budget=None), name, 0)
    row, made = REGISTRY[name].recipe, unit.settings.classifier.optimizer
    assert (made.name, made.lr, made.weight_decay) == (optimizer, row.lr, row.weight_decay)
    assert budget_of(unit) == Budget(epochs=row.epochs) and row.row in unit.chosen.text


def test_a_row_of_table_ix_leaves_out_what_its_optimiser_has_not() -> None:
    """Options of one kind of optimiser may be given for a table that has both kinds."""
    given = ["classifier.optimizer.betas=[0.8,0.9]"]
    settings = study_settings("small", given)
    for model, betas in (("resnet101", (0.9, 0.999)), ("vit_b16", (0.8, 0.9))):
        [row] = configurations(model, settings, "paper", 1)
        assert override(settings, row.changes).classifier.optimizer.betas == betas
    sgd = study_settings("small", ["classifier.optimizer.name=sgd", "classifier.optimizer.momentum=0.5"])
    for model, momentum in (("resnet101", 0.5), ("vit_b16", None)):
        [row] = configurations(model, sgd, "paper", 1)
        assert override(sgd, row.changes).classifier.optimizer.momentum == momentum
