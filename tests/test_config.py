"""Recipes, overrides and what a misspelt setting is answered with."""

import pytest

from dcube.config import Experiment
from dcube.errors import InputError
from dcube.idle import BELONGING
from dcube.settings import changed_settings, load_experiment, parse_experiment, recipe_names, resolve

PAPER = {  # recipe: epochs of step 1, epochs of step 2, lambda_1
    "pancreas-ct": (280, 70, 10),
    "breast-mri": (950, 50, 100),
    "covid-xray": (730, 70, 10),
}


def test_recipes_are_those_of_the_contract_and_a_quick_one() -> None:
    assert recipe_names() == ["breast-mri", "covid-xray", "demo", "pancreas-ct", "quick", "small"]


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_valid_and_survives_a_round_trip(name: str) -> None:
    experiment = load_experiment(name)
    assert experiment.recipe == name
    if (trained := experiment.features.timesteps) is not None:  # a head is not asked of timesteps that it never saw
        assert {*experiment.features.eval_timesteps} <= {*trained}
    again = parse_experiment(experiment.model_dump(mode="json"))
    assert changed_settings(experiment, again) == []


@pytest.mark.parametrize("name", PAPER)
def test_numbers_of_the_paper(name: str) -> None:
    experiment = load_experiment(name)
    diffusion, classifier = experiment.diffusion, experiment.classifier
    first, second, cycle = PAPER[name]
    assert (diffusion.backbone, diffusion.image_size, diffusion.uvit.patch) == ("uvit", 128, 8)
    assert (diffusion.uvit.width, diffusion.uvit.depth, diffusion.uvit.heads, diffusion.uvit.mlp_ratio) == (
        512,
        12,
        8,
        4,
    )
    assert (diffusion.timesteps, diffusion.beta_start, diffusion.beta_end) == (1000, 1e-4, 0.02)
    assert (diffusion.contrastive.distance, diffusion.contrastive.label) == ("paper", "true")
    assert (diffusion.contrastive.margin, diffusion.contrastive.weight, diffusion.augment) == (0.1, 1, False)
    assert (diffusion.optimizer.lr, diffusion.optimizer.epochs) == (2e-4, first)
    assert (experiment.features.timestep, experiment.features.batch_size, experiment.features.alpha) == (100, 256, 0.05)
    assert (experiment.features.input, experiment.features.timesteps) == ("clean", None)
    assert (classifier.head, classifier.grid, classifier.width, classifier.dropout) == ("paper", 16, 512, 0.5)
    assert (classifier.cnn, classifier.lambda_cycle, classifier.lambda_consistency) == ("resnext101_32x8d", cycle, 0.1)
    assert (classifier.optimizer.lr, classifier.optimizer.epochs, classifier.optimizer.ema_decay) == (
        2e-4,
        second,
        0.999,
    )
    assert experiment.data.horizontal_flip
    if name == "breast-mri":
        assert classifier.optimizer.weight_decay == 0.1


def test_overrides_are_typed_and_the_last_wins() -> None:
    experiment = load_experiment(
        "small", ["diffusion.image_size=32", "diffusion.image_size=64", "features.blocks=[6, 8, 9]", "data.channels=1"]
    )
    assert experiment.diffusion.image_size == 64
    assert experiment.features.blocks == (6, 8, 9)
    assert experiment.data.channels == 1


def test_steps_replace_epochs() -> None:
    optimizer = load_experiment("small", ["classifier.optimizer.steps=10"]).classifier.optimizer
    assert (optimizer.steps, optimizer.epochs) == (10, None)


@pytest.mark.parametrize(
    ("recipe", "override", "words"),
    [
        ("smal", None, ("no recipe 'smal'", "small")),
        ("none.yaml", None, ("no recipe 'none.yaml'",)),
        ("small", "diffusion.imagesize=32", ("no setting 'diffusion.imagesize'", "diffusion.image_size")),
        ("small", "lambda_cycle=1", ("classifier.lambda_cycle",)),  # right name, section forgotten
        ("small", "difusion.image_size=32", ("diffusion",)),
        ("small", "diffusion.image_size", ("not of the form key.path=value",)),
        ("small", "diffusion.image_size=[", ("not valid YAML",)),
        ("small", "diffusion.image_size=63", ("multiple",)),
        ("small", "features.alpha=2", ("features.alpha", "2")),
        ("small", "data.horizontal_flip=false", ("lambda_consistency",)),
    ],
)
def test_bad_settings_name_the_fault_in_one_sentence(recipe: str, override: str | None, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        load_experiment(recipe, [override] if override else [])
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "none", "value", "words"),
    [
        ("data.window", "null", [-600.0, 1500.0], ("None", "[-600.0, 1500.0]")),
        ("classifier.covariance_readers", "[]", ["cnn"], ("None", "['cnn']")),
        ("classifier.sub_network", "cnn", "step1", ("None", "step1")),
    ],
)
def test_what_older_runs_know_nothing_of_is_not_written_where_it_is_not_used(
    name: str, none: str, value: object, words: tuple[str, str]
) -> None:
    """Folders made before there was such a setting are compared by what their settings were written as."""
    section, key = name.split(".")
    without, with_one = (load_experiment("small", [f"{name}={given}"]) for given in (none, value))
    assert key not in without.model_dump(mode="json")[section]
    assert with_one.model_dump(mode="json")[section][key] == value
    for settings in (with_one, without):
        assert Experiment.model_validate(settings.model_dump(mode="json")) == settings
    assert changed_settings(with_one, without) == [f"{name}: {words[1]} -> {words[0]}"]
    assert changed_settings(without, with_one) == [f"{name}: {words[0]} -> {words[1]}"]


def test_recipe_files_with_an_empty_section_or_in_another_encoding(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("diffusion:\nclassifier:\n")
    assert load_experiment(str(tmp_path / "mine.yaml"), ["diffusion.image_size=48"]).diffusion.image_size == 48
    (tmp_path / "mine.yaml").write_bytes("# für Köln\n".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        load_experiment(str(tmp_path / "mine.yaml"))


def test_misspelt_key_in_a_recipe_file(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("classifier:\n  dropuot: 0.3\n")
    with pytest.raises(InputError, match=r"classifier\.dropuot.*classifier\.dropout"):
        load_experiment(str(tmp_path / "mine.yaml"))


def test_changed_settings_are_named_with_both_values() -> None:
    changes = changed_settings(load_experiment("small"), load_experiment("small", ["classifier.dropout=0.3"]))
    assert changes == ["classifier.dropout: 0.5 -> 0.3"]
    assert changed_settings(Experiment(), Experiment()) == []


LAPTOP = ("backbone=unet", "image_size=64", "unet.patch=2", "unet.widths=[32, 64, 96, 128]")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["schedule=cosine", "beta_end=0.03"], "beta_start and beta_end belong to schedule linear"),
        (["gamma=3"], "gamma needs weighting"),
        (["t_mean=-1"], "t_distribution logit_normal"),
        (["augmentation.probability=0.1", "align.weight=0.5"], "exclude one another"),
        (["backbone=uvit", "growth=[[0.5, 32]]"], "growth needs backbone unet"),
        (["growth=[[0.5, 32], [0.4, 48]]"], "growth must rise"),
        (["growth=[[0.5, 64]]"], "growth must rise"),
        (["growth=[[0.0, 32]]"], "growth must rise"),
        (["growth=[[0.5, 36]]"], "size 36 is not a multiple of 16"),
        (["prediction=epsilon"], "diffusion.prediction"),
        (["augmentation.probability=1.5"], "diffusion.augmentation.probability"),
    ],
)
def test_settings_of_step_1_that_would_do_nothing_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_experiment("small", [f"diffusion.{override}" for override in [*LAPTOP, *overrides]])


def test_settings_of_step_1_survive_a_round_trip() -> None:
    asked = [*LAPTOP, "growth=[[0.25, 32], [0.5, 48]]", "schedule=cosine", "weighting=p2", "gamma=0.5", "prediction=v"]
    experiment = load_experiment("small", [f"diffusion.{override}" for override in asked])
    again = parse_experiment(experiment.model_dump(mode="json"))
    assert again == experiment and again.diffusion.growth == ((0.25, 32), (0.5, 48))
    assert [again.diffusion.size_at(step, 100) for step in (0, 24, 25, 49, 50, 99)] == [32, 32, 48, 48, 64, 64]


@pytest.mark.parametrize(
    ("given", "owner"),
    [
        ("diffusion.uvit.depth=6", "diffusion.backbone=uvit"),
        ("diffusion.contrastive.margin=0.3", "diffusion.contrastive.weight above 0"),
        ("diffusion.align.stride=8", "diffusion.align.weight above 0"),
        ("diffusion.augmentation.strength=2", "diffusion.augmentation.probability above 0"),
        ("diffusion.probe_blocks=[1]", "diffusion.probe_minutes above 0"),
        ("classifier.cycle_fraction=0.5", "classifier.lambda_cycle above 0"),
        ("features.top_k=2", "a choice by the test, and features.blocks forces one"),
        ("features.eval_timesteps=[10]", "another features.input than clean_t0"),
        ("classifier.width=64", "classifier.head paper or late"),
        ("classifier.grid=12", "classifier.head=paper"),
        ("diffusion.sample_steps=9", "another diffusion.sampler than ddpm"),
        ("diffusion.unet.patch=4", "diffusion.backbone=unet"),
    ],
)
def test_a_setting_that_changes_nothing_beside_the_others_is_told(
    given: str, owner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = ["diffusion.align.weight=0", "diffusion.contrastive.weight=0", "classifier.lambda_cycle=0"]
    idle += {
        "features.top_k=2": ["features.blocks=[1]"], "features.eval_timesteps=[10]": ["features.input=clean_t0"],
        "classifier.width=64": ["classifier.head=branches"], "diffusion.sample_steps=9": ["diffusion.sampler=ddpm"],
        "diffusion.unet.patch=4": ["diffusion.backbone=uvit"],
    }.get(given, [])  # fmt: skip
    settings = resolve("small", [*idle, given, given], seed=0, device="cpu")
    key, _, value = given.partition("=")
    assert capsys.readouterr().err == f"{key} changes nothing here: it belongs to {owner}.\n"
    assert settings == load_experiment("small", [*idle, given, "seed=0", "runtime.device=cpu"])
    assert changed_settings(settings, resolve("small", idle, seed=0, device="cpu")) == []
    capsys.readouterr()
    acting = {
        "diffusion.uvit.depth": "diffusion.backbone=uvit", "diffusion.probe_blocks": "diffusion.probe_minutes=1",
        "diffusion.augmentation.strength": "diffusion.augmentation.probability=0.1",
        "features.top_k": "features.blocks=null", "features.eval_timesteps": "features.input=clean",
        "classifier.width": "classifier.head=late", "diffusion.sample_steps": "diffusion.sampler=sde",
        "diffusion.unet.patch": "diffusion.backbone=unet", "classifier.grid": "classifier.head=paper",
    }.get(key, f"{owner.split()[0]}=1")  # fmt: skip
    resolve("small", [*idle, f"{key}={value}", acting], seed=None, device=None)
    assert capsys.readouterr().err == ""


def test_every_setting_that_may_be_idle_exists() -> None:
    tree = load_experiment("small").model_dump()
    for patterns, _, _ in BELONGING:
        for pattern in patterns:
            found = tree
            for part in pattern.removesuffix(".*").split("."):
                found = found[part]
