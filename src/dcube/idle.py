"""Settings that are given and change nothing beside the others: told, for nobody gives them for that."""

import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from dcube.config import Experiment

# settings, as patterns; what they belong to; whether that is there
BELONGING: tuple[tuple[tuple[str, ...], str, Callable[[Experiment], bool]], ...] = (
    (("diffusion.uvit.*",), "diffusion.backbone=uvit", lambda s: s.diffusion.backbone == "uvit"),
    (("diffusion.unet.*",), "diffusion.backbone=unet", lambda s: s.diffusion.backbone == "unet"),
    (
        ("diffusion.contrastive.*",),
        "diffusion.contrastive.weight above 0", lambda s: s.diffusion.contrastive.weight > 0,
    ),
    (
        ("diffusion.contrastive.distance", "diffusion.contrastive.pairs", "diffusion.contrastive.margin"),
        "diffusion.contrastive.form=pair", lambda s: s.diffusion.contrastive.form == "pair",
    ),
    (
        ("diffusion.contrastive.temperature",),
        "diffusion.contrastive.form=supervised", lambda s: s.diffusion.contrastive.form == "supervised",
    ),
    (("diffusion.align.*",), "diffusion.align.weight above 0", lambda s: s.diffusion.align.weight > 0),
    (
        ("diffusion.augmentation.strength",),
        "diffusion.augmentation.probability above 0", lambda s: s.diffusion.augmentation.probability > 0,
    ),
    (("diffusion.probe_blocks",), "diffusion.probe_minutes above 0", lambda s: s.diffusion.probe_minutes > 0),
    (("diffusion.sample_steps",), "another diffusion.sampler than ddpm", lambda s: s.diffusion.sampler != "ddpm"),
    (
        ("features.top_k", "features.select"),
        "a choice by the test, and features.blocks forces one", lambda s: s.features.blocks is None,
    ),
    (
        ("features.timesteps", "features.eval_timesteps"),
        "another features.input than clean_t0", lambda s: s.features.input != "clean_t0",
    ),
    (
        ("classifier.grid",), "classifier.head=paper",  # the others have a raster of their own, and 8 is their largest
        lambda s: s.classifier.head == "paper" or s.classifier.grid < (4 if s.classifier.head == "late" else 8),
    ),
    (("classifier.width",), "classifier.head paper or late", lambda s: s.classifier.head != "branches"),
    (("classifier.cycle_fraction",), "classifier.lambda_cycle above 0", lambda s: s.classifier.lambda_cycle > 0),
)  # fmt: skip


def owner(settings: Experiment, key: str) -> str | None:
    """What the setting `key.path` belongs to, where that is not there in `settings`; None where it has an effect."""
    for patterns, what, there in BELONGING:
        named = any(fnmatchcase(key, pattern) for pattern in patterns) and not what.startswith(f"{key} ")
        if named and not there(settings):
            return what
    return None


def told(settings: Experiment, overrides: Sequence[str]) -> list[str]:
    """Those `key.path=value` of `overrides` that have an effect in `settings`, which hold them; the others are said on
    stderr.
    """
    owners = {change: owner(settings, change.partition("=")[0].strip()) for change in overrides}
    for sentence in dict.fromkeys(
        f"{change.partition('=')[0].strip()} changes nothing here: it belongs to {what}."
        for change, what in owners.items() if what
    ):  # fmt: skip
        print(sentence, file=sys.stderr)
    return [change for change in overrides if not owners[change]]
