"""Who competes: the systems by name, D-Cube and the other uses of its step 1, and the floors."""

from dataclasses import dataclass

from dcube.baselines.registry import REGISTRY, Baseline, baseline
from dcube.config import Experiment

FLOORS = {
    "majority": ("majority class", "floor"),
    "statistics": ("logistic regression on 14 statistics", "floor"),
    "pixels": ("logistic regression on 32x32 pixels", "floor"),
    "knn": ("nearest neighbours on the CNN's features", "floor"),
    "cnn_probe": ("linear probe of the CNN's middle map", "floor"),
    "cnn_covariances": ("linear probe of the CNN's covariances", "floor"),
}
CNN_FLOORS = ("knn", "cnn_probe", "cnn_covariances")  # on the recipe's CNN as it comes
OURS = {
    "dcube": ("D-Cube", "Jang et al., ICDM 2024"),
    "dcube_long": ("D-Cube, longer step 1", "Jang et al., ICDM 2024"),
    "diffusion_classifier": ("diffusion classifier on D-Cube's step 1", "Li et al., ICCV 2023"),
    "feature_probe": ("linear probe on D-Cube's features", "Jang et al., ICDM 2024"),
    "step1_covariances": ("linear probe of step 1's covariances", "ours"),
}
STEP1 = {  # which step 1 they use; it is trained once per data set and seed
    "dcube": "step1", "diffusion_classifier": "step1", "feature_probe": "step1", "step1_covariances": "step1",
    "dcube_long": "step1_long",
}  # fmt: skip
AND = "+"  # between systems whose answers are joined, as in "dcube+cnn_probe"
MOST_TRIES = 2  # configurations that are declared for every system


@dataclass(frozen=True)
class Configuration:
    """One way of training a system: what the table says of it, the changes of the settings, and, for the diffusion
    classifier, its draws of noise.
    """

    text: str
    changes: tuple[str, ...] = ()
    draws: int = 0


def title(model: str) -> str:
    """What the table calls a system."""
    if parts := parts_of(model):
        return " and ".join(map(title, parts))
    own = FLOORS.get(model) or OURS.get(model)
    return own[0] if own else baseline(model).title


def is_system(model: str) -> bool:
    """Whether it is a network of `baselines`, trained by its own loss."""
    return model not in FLOORS and model not in OURS and not parts_of(model)


def parts_of(model: str) -> tuple[str, ...]:
    """The systems that a name joins; none where it is one system."""
    parts = tuple(part.strip() for part in model.split(AND))
    return parts if len(parts) > 1 else ()


def configurations(model: str, settings: Experiment, recipes: str, tries: int) -> tuple[Configuration, ...]:
    """What is tried of a system, the first `tries` of those declared; one where there is nothing to tune, and where
    the paper's recipes are asked for. InputError for a name that there is not.
    """
    if parts_of(model):
        return (Configuration("those of its parts"),)
    if model in FLOORS:
        inside = "tuned inside the training part" if model in ("pixels", *CNN_FLOORS) else "nothing to tune"
        return (Configuration(inside),)
    if model in OURS:
        return _ours(model, settings)[: 1 if recipes == "paper" else tries]
    return _rates(baseline(model), recipes)[:tries]


def _ours(model: str, settings: Experiment) -> tuple[Configuration, ...]:
    """D-Cube's own: the recipe, and without eq. 8 or, where the recipe has none, twice its learning rate; draws of
    noise; timesteps of the probe.
    """
    if model == "diffusion_classifier":
        return Configuration("10 draws", draws=10), Configuration("4 draws", draws=4)
    if model == "step1_covariances":
        other = f"features.eval_timesteps=[{settings.features.timestep}]"  # the earliest of them counts
        return Configuration("recipe"), Configuration(other.removeprefix("features."), (other,))
    if model == "feature_probe":
        one = f"features.eval_timesteps=[{settings.features.timestep}]"
        return Configuration("recipe"), Configuration(one.removeprefix("features."), (one,))
    classifier = settings.classifier
    if classifier.lambda_consistency:
        return Configuration("recipe"), Configuration("without eq. 8", ("classifier.lambda_consistency=0",))
    double = f"classifier.optimizer.lr={2 * classifier.optimizer.lr:g}"
    return Configuration("recipe"), Configuration(double.removeprefix("classifier.optimizer."), (double,))


def _rates(entry: Baseline, recipes: str) -> tuple[Configuration, ...]:
    """Learning rates of AdamW, or the row of table IX."""
    where, row = "classifier.optimizer.", entry.recipe
    if recipes == "paper":
        other = "betas=[0.9,0.999]" if row.optimizer == "sgd" else "momentum=null"  # what the row's optimiser has not
        changes = (f"name={row.optimizer}", f"lr={row.lr:g}", f"weight_decay={row.weight_decay:g}", other)
        text = f"{row.optimizer}, lr {row.lr:g}, weight decay {row.weight_decay:g} ({row.row})"
        return (Configuration(text, tuple(where + change for change in changes)),)
    return tuple(Configuration(f"lr={rate:g}", (f"{where}lr={rate:g}",)) for rate in row.rates)


def names() -> list[str]:
    """Every name of the list: D-Cube, the registry, the floors. Any other model of timm has one too."""
    return [*OURS, *REGISTRY, *FLOORS]
