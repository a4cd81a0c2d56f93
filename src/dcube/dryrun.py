"""`fit --dry-run`: sizes, memory, disk and time expected, from a few steps on random pixels; nothing is written.

Times are of the steps alone: validation, samples and the reading of images come on top.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable

import torch

from dcube.classifier.head import map_side
from dcube.classifier.model import DCubeClassifier
from dcube.config import Experiment
from dcube.data.records import SPLITS, ImageSet
from dcube.data.split import assign_splits
from dcube.diffusion.build import add_side_heads, build_denoiser
from dcube.diffusion.objective import GenerativeObjective
from dcube.diffusion.schedule import Schedule
from dcube.diffusion.train import Diffusion
from dcube.evaluation.intervals import FEW_GROUPS
from dcube.features.finetuned import fine_tuned
from dcube.features.frozen import FeatureCache, FrozenFeatures
from dcube.features.subnet import SubNetwork
from dcube.pretraining import Pretraining
from dcube.training.runtime import Runtime

TIMED_STEPS = 3  # of which the fastest counts
TEACHER_IMAGES = 32  # in one forward pass of the CNN that step 1 imitates


def describe_run(images: ImageSet, settings: Experiment, first: Pretraining | None = None) -> str:
    """What `fit` would do with these images and settings, as lines of text; first: what its step 1 begins with."""
    labels, groups = [record.label for record in images.records], [record.group for record in images.records]
    splits = assign_splits(
        labels, groups, [record.split for record in images.records],
        val_fraction=settings.data.val_fraction, test_fraction=settings.data.test_fraction, seed=settings.seed,
    )  # fmt: skip
    counts = Counter(zip(labels, splits.tolist(), strict=True))
    held = Counter((label, split) for label, split, _ in set(zip(labels, splits.tolist(), groups, strict=True)))
    channels = settings.data.channels if settings.data.channels != "auto" else 1
    lines = [f"{images.name}: {len(labels)} images, {len(set(groups))} groups (in brackets below)"]
    for name in images.classes:
        parts = (f"{counts[name, split]} ({held[name, split]}) {split}" for split in SPLITS)
        lines.append(f"  {name}: " + ", ".join(parts))
    few = [name for name in images.classes if any(0 < held[name, split] < FEW_GROUPS for split in SPLITS)]
    if few:
        lines.append(
            f"  fewer than {FEW_GROUPS} groups (patients) of {', '.join(few)} in a split: figures of so few say little,"
            " and so do their intervals; get more, or use --folds"
        )
    train = int((splits == "train").sum())
    size, stored = settings.data.size, sum(len(one.records) for one in (first.images if first else [images]))
    lines.append(f"store: {stored * channels * size**2 / 1e9:.2f} GB at {size} px, 8 bits, {channels} channel(s)")
    diffusion, step1 = _time_step1(settings, channels, len(images.classes))
    step2, cache = _time_step2(settings, diffusion, len(images.classes), train)
    trainings = [
        ("step 1 (diffusion)", step1 + _teacher_share(settings, channels, train), settings.diffusion.optimizer, train),
        ("step 2 (classifier)", step2, settings.classifier.optimizer, train),
    ]
    if first:
        more = train + sum(len(one.records) for one in first.images[1:])
        alone = step1 + _teacher_share(first.settings, channels, more)
        optimizer = first.settings.diffusion.optimizer
        trainings.insert(0, (f"step 1 without labels, up to {more} images", alone, optimizer, more))
    for title, seconds, optimizer, count in trainings:
        steps, together = optimizer.total_steps(count), 2 if title.startswith("step 1") else 1  # pairs
        passes = steps * optimizer.batch_size * together / count
        lines.append(
            f"{title}: {steps} steps of {seconds:.2f} s, some {steps * seconds / 60:.0f} minutes while the machine is"
            f" as busy as now; each image {passes:.0f} times"
        )
    parameters = sum(p.numel() for p in diffusion.model.parameters())
    disk = 2 * 16 * parameters / 1e9  # two checkpoints: weights, EMA, two moments
    lines.append(f"diffusion model: {parameters / 1e6:.1f} M parameters, checkpoints {disk:.2f} GB")
    lines.append(f"feature cache: {cache:.2f} GB (features.cache_gb allows {settings.features.cache_gb:g})")
    if (peak := _peak_memory()) is not None:
        lines.append(f"peak memory of these steps: {peak:.1f} GB")
    return "\n".join([*lines, "Validation, samples and the reading of images come on top. Nothing was written."])


def _peak_memory() -> float | None:
    """Of this process, gigabytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def _time_step1(settings: Experiment, channels: int, classes: int) -> tuple[Diffusion, float]:
    config = settings.diffusion
    runtime = Runtime(settings.runtime, config.optimizer.dtype)
    core = build_denoiser(config, channels, classes)
    add_side_heads(core, config, None, settings.seed)  # the imitated CNN is timed by itself
    model = runtime.prepare(core)
    schedule = Schedule.of(config).to(runtime.device)
    objective = GenerativeObjective(schedule, config.contrastive, core.middle)
    B, S = config.optimizer.batch_size, config.image_size
    batch = runtime.share({
        "x": torch.rand(B, 2, channels, S, S) * 2 - 1, "y": torch.zeros(B, 2, dtype=torch.long),
        "same": torch.arange(B) % 2 == 0, "t": torch.randint(config.timesteps, (B,)),
        "noise": torch.randn(B, channels, S, S), "dropped": torch.zeros(B, 2, dtype=torch.bool),
    })  # fmt: skip
    seconds = _fastest(runtime, lambda: objective(model, **batch)[0])
    core.eval().requires_grad_(False)
    return Diffusion(core, schedule, config, channels, [str(i) for i in range(classes)]), seconds


def _teacher_share(settings: Experiment, channels: int, train: int) -> float:
    """Seconds per step of step 1 that go to the CNN it imitates: its maps are made for the images of every step, or
    once for all where that is less.
    """
    config, optimizer = settings.diffusion.align, settings.diffusion.optimizer
    if not config.weight:
        return 0.0
    runtime = Runtime(settings.runtime, optimizer.dtype)
    network = SubNetwork(config.cnn, "none", config.size).eval().requires_grad_(False).to(runtime.device)
    count = min(TEACHER_IMAGES, 2 * optimizer.batch_size)
    images = torch.rand(count, channels, config.size, config.size, device=runtime.device)
    with torch.inference_mode():
        seconds = min(_seconds(runtime, lambda: network.level(images, config.stride)) for _ in range(TIMED_STEPS))
    asked = 2 * optimizer.batch_size * optimizer.total_steps(train)
    return seconds / count * min(asked, 2 * train) / optimizer.total_steps(train)


def _time_step2(settings: Experiment, diffusion: Diffusion, classes: int, train: int) -> tuple[float, float]:
    """Seconds per step, and gigabytes of the feature cache; as many blocks as `features.top_k` are assumed."""
    config, optimizer = settings.classifier, settings.classifier.optimizer
    blocks = list(settings.features.blocks or range(len(diffusion.model.blocks))[-settings.features.top_k - 1 : -1])
    frozen = FrozenFeatures(diffusion, blocks, settings.features.input, map_side(config))
    runtime = Runtime(settings.runtime, optimizer.dtype)
    own = fine_tuned(diffusion, config, settings.features)
    model = runtime.prepare(DCubeClassifier(config, classes, [s[0] for s in frozen.shapes], weights="none", own=own))
    B = optimizer.batch_size
    large = torch.rand(B, diffusion.channels, *[settings.sub_size] * 2, device=runtime.device)
    small = torch.rand(B, diffusion.channels, *[diffusion.config.image_size] * 2, device=runtime.device)
    t = torch.zeros(B, dtype=torch.long, device=runtime.device)
    fixed = settings.features.training_timesteps
    cache = FeatureCache.gigabytes(frozen, train, len(fixed), settings.data.horizontal_flip) if fixed else 0.0
    held = [m.clone() for m in frozen(small, t)] if fixed else None
    views = 2 if config.lambda_consistency else 1

    def loss() -> torch.Tensor:
        logits = [model(large, held or [m.clone() for m in frozen(small, t)]) for _ in range(views)]
        total: torch.Tensor = torch.stack(logits).float().square().mean()
        if config.lambda_cycle:
            part = small[: max(1, round(config.cycle_fraction * B))]
            target, _ = diffusion.model(part, t[: len(part)], logits[0][: len(part)].softmax(-1))
            assert target is not None
            total = total + target.float().square().mean()
        return total

    return _fastest(runtime, loss), cache


def _fastest(runtime: Runtime, loss: Callable[[], torch.Tensor]) -> float:
    def step() -> None:
        with runtime.autocast():
            value = loss()
        runtime.backward(value)

    return min(_seconds(runtime, step) for _ in range(TIMED_STEPS))


def _seconds(runtime: Runtime, call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
