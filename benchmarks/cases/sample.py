"""Synthetic images: the recipe's sampler beside 1000 ancestral steps."""

from typing import Any

import torch

from benchmarks.case import Case, Side
from benchmarks.reference.generative import ancestral_sample
from benchmarks.sizes import Size
from benchmarks.world import World, difference
from dcube.diffusion.sampling import ddpm_sample
from dcube.diffusion.schedule import Schedule
from dcube.training.order import torch_rng

CHAIN = 2  # steps of the chain on which both ancestral samplers are compared


def ours(world: World) -> Side:
    """What `dcube sample` calls, with the recipe's settings."""
    labels = torch.arange(world.size.sampled) % world.classes
    return [(lambda: world.diffusion.sample(labels, world.seed), 1.0)]


def reference(world: World) -> Side:
    """The first steps of the chain, counted as often as they fit into all of it."""
    plain, steps = world.plain(), world.size.sampled_steps
    timesteps = world.experiment.diffusion.timesteps
    labels, start = classes_of(world), first_noise(world)

    def sample() -> torch.Tensor:
        return ancestral_sample(plain, labels, start, torch_rng(0, "chain"), timesteps, timesteps - steps)

    return [(sample, timesteps / steps)]


def deviation(images: Any, others: Any, world: World) -> float:
    """Not of the images that were timed, which come from different samplers: of those of both ancestral samplers over
    a schedule of `CHAIN` steps, from one noise.
    """
    labels, start = classes_of(world), first_noise(world)
    schedule = Schedule(CHAIN).to(world.device)
    ours = ddpm_sample(world.diffusion.model, schedule, labels, start, torch_rng(0, "chain"))
    return difference(ours, ancestral_sample(world.plain(), labels, start, torch_rng(0, "chain"), CHAIN))


def classes_of(world: World) -> torch.Tensor:
    """A label per image, the classes in turn."""
    return torch.arange(world.size.sampled, device=world.device) % world.classes


def first_noise(world: World) -> torch.Tensor:
    """Standard normal images."""
    side = world.experiment.diffusion.image_size
    return torch.randn((world.size.sampled, 1, side, side), generator=torch_rng(0, "start")).to(world.device)


def cases(size: Size) -> list[Case]:
    """16 images."""
    config = size.experiment().diffusion
    note = (
        f"the reference's {config.timesteps} steps are timed over {size.sampled_steps} and extrapolated; the program"
        f" takes {config.sample_steps} of {config.sampler}; deviation: both ancestral samplers over {CHAIN} steps from"
        " one noise"
    )
    return [Case(f"sample-{size.sampled}", ours, reference, deviation, note, repeats=3)]
