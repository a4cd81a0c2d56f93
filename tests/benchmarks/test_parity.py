"""The program against the plain reference on the same weights, images and random numbers, in float32 to 1e-5."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.cases import features, loading, predict, sample, step1, step2
from benchmarks.reference.classifier import ClassifierReference, block_maps
from benchmarks.reference.denoiser import PlainDenoiser
from benchmarks.reference.generative import ancestral_sample
from benchmarks.sizes import Size
from benchmarks.world import World, difference
from dcube.classifier.batches import ClassifierBatches
from dcube.classifier.train import ClassifierLoss
from dcube.diffusion.sampling import ddpm_sample

UVIT = (
    *("diffusion.backbone=uvit", "diffusion.uvit.patch=4", "diffusion.uvit.width=24", "diffusion.uvit.depth=4"),
    *("diffusion.uvit.heads=3", "diffusion.image_size=16"),
)
UNET = ("diffusion.image_size=16", "diffusion.unet.patch=2", "diffusion.unet.widths=[8,64]", "diffusion.unet.groups=4")
FP32 = (
    *("diffusion.optimizer.dtype=fp32", "classifier.optimizer.dtype=fp32", "features.dtype=fp32"),
    "diffusion.optimizer.batch_size=4",
    *("classifier.optimizer.batch_size=5", "diffusion.timesteps=20", "features.timestep=10", "classifier.width=8"),
    *("classifier.grid=4", "features.timesteps=[2,5,9]", "features.eval_timesteps=[2,5,9]", "runtime.threads=1"),
)
NETWORK = ("test_efficientnet", 32)
TOLERANCE = 1e-5


@pytest.fixture(params=["uvit", "unet"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    backbone = UVIT if request.param == "uvit" else UNET
    size = Size(
        request.param, "small", (*FP32, *backbone), (2, 3), (NETWORK,), NETWORK, stored=32, images=12, files=8,
        file_size=64, tested=8, sampled=2, sampled_steps=20, predicted=3, predicted_plainly=3,
    )  # fmt: skip
    return World(size, torch.device("cpu"), tmp_path)


def test_denoiser(world: World) -> None:
    """Noise and every block, for hard, soft and null labels."""
    x, t = torch.randn(3, 1, 16, 16), torch.tensor([0, 7, 19])
    soft = torch.rand(3, 3).softmax(1)
    model, plain = world.diffusion.model, world.plain()
    for theirs, ours in ((torch.tensor([0, 2, 3]), torch.tensor([0, 2, 3])), (soft, soft), (torch.full((3,), 3), None)):
        expected, blocks = plain(x, t, theirs)
        noise, tapped = model(x, t, ours, taps=model.blocks)
        assert difference(noise, expected) < TOLERANCE
        for name, block in zip(model.blocks, blocks, strict=True):
            assert difference(tapped[name], block) < TOLERANCE, name
            assert difference(model.as_map(tapped[name]), plain.maps(block)) < TOLERANCE, name


def test_step_1_loss(world: World) -> None:
    ours, reference = step1.ours(world)[0][0], step1.reference(world)[0][0]
    assert step1.deviation(ours(), reference(), world) < TOLERANCE


def test_step_1_gradients(world: World) -> None:
    """Of eq. 5, for every parameter."""
    task, reference = step1.task(world), step1.reference(world)[0][0].__self__
    loss, _ = task.loss(task.model, task.batch(0), 0)
    loss.backward()
    plain = reference.denoiser.p
    reference.loss().backward()
    for name, parameter in task.model.named_parameters():
        assert difference(parameter.grad, plain[name].grad) < 1e-3 or plain[name].grad.norm() < 1e-6, name


@pytest.mark.parametrize("share", [None, 0.25, 1.0])
def test_step_2_loss(world: World, share: float | None) -> None:
    """With live features: a cache is float16."""
    changes = ("classifier.lambda_cycle=0",) if share is None else (f"classifier.cycle_fraction={share}",)
    experiment = step2.live(world.size.experiment(*changes))
    side = step2.Training(step2.task(world, experiment), experiment.classifier.optimizer, world)
    assert step2.deviation(side(), step2.reference(experiment, world)[0][0](), world) < TOLERANCE


def test_batch_statistics_of_an_image_and_its_mirror_image_are_apart(world: World) -> None:
    """Gradients and running statistics after one step 2 forward equal those of two forwards of their own."""
    experiment = step2.live(world.size.experiment("classifier.lambda_cycle=0"))
    batches = ClassifierBatches(world.data, experiment, world.frozen, world.folder)
    ours, plain = world.new_classifier(experiment), world.new_classifier(experiment)
    lambdas = 0.0, experiment.classifier.lambda_consistency
    reference = ClassifierReference(world.plain(), plain, batches(0), (2, 3), 4, lambdas, False, 1e-3, 0.9)
    expected = reference.loss()
    expected.backward()
    loss, _ = ClassifierLoss(experiment, world.frozen, batches.labels, 3)(ours.train(), batches(0), 0)
    loss.backward()
    assert difference(loss, expected) < TOLERANCE
    buffers = dict(plain.named_buffers())
    for name, buffer in ours.named_buffers():
        assert difference(buffer, buffers[name]) < TOLERANCE, name
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert difference(p.grad, q.grad) < 1e-3 or q.grad.norm() < 1e-4 * p.norm(), name


def test_features(world: World) -> None:
    small, t = torch.rand(4, 1, 16, 16), torch.tensor([0, 3, 9, 19])
    maps = world.frozen(small, t)
    for ours, expected in zip(maps, block_maps(world.plain(), small, t, (2, 3), 4), strict=True):
        assert difference(ours, expected) < TOLERANCE
    cache, expected = features.ours_extract(world)[0][0](), features.reference_extract(world)[0][0]()
    assert features.deviation_extract(cache, expected, world) < 1e-3  # float16


def test_selection(world: World) -> None:
    ours, reference = features.ours_select(world)[0][0](), features.reference_select(world)[0][0]()
    assert len(reference) == len(world.diffusion.model.blocks)
    assert features.deviation_select(ours, reference, world) < TOLERANCE
    assert difference([b["D"] for b in ours["blocks"]], [D for D, _ in reference]) < TOLERANCE


def test_ancestral_sampling(world: World) -> None:
    """The whole chain of 20 steps, and the short one of the benchmark."""
    y, start = torch.tensor([0, 2]), sample.first_noise(world)
    ours = ddpm_sample(world.diffusion.model, world.diffusion.schedule, y, start, torch.Generator().manual_seed(5))
    expected = ancestral_sample(world.plain(), y, start, torch.Generator().manual_seed(5), 20)
    assert difference(ours, expected) < TOLERANCE
    assert sample.deviation(None, None, world) < TOLERANCE


@pytest.mark.parametrize("count", [1, 3])
def test_prediction(world: World, count: int) -> None:
    rows, expected = predict.ours(count, world)[0][0](), predict.reference(count, world)[0][0]()
    assert len(rows) == len(expected) == count
    assert expected.shape == (count, 3) and np.allclose(expected.sum(1), 1)
    assert predict.deviation(rows, expected, world) < TOLERANCE


def test_pairs_hold_the_same_first_images_and_fit(world: World) -> None:
    ours, reference = loading.ours(world)[0][0](), loading.reference(world)[0][0]()
    assert ours[0].shape == reference[0].shape == (4, 2, 1, 16, 16)
    assert loading.deviation(ours, reference, world) < 0.03  # other filters


def test_a_reference_that_departs_is_noticed(world: World) -> None:
    """The comparison can fail: one weight changed by a hundredth."""
    model = world.diffusion.model
    tensors = {name: v.clone() for name, v in model.state_dict().items()}
    name = next(n for n, p in model.named_parameters() if isinstance(p, nn.Parameter) and p.ndim == 4)
    tensors[name][0] += 0.01
    x, t, y = torch.randn(2, 1, 16, 16), torch.tensor([3, 9]), torch.tensor([0, 1])
    expected, _ = PlainDenoiser(tensors, world.diffusion.config)(x, t, y)
    assert difference(model(x, t, y)[0], expected) > 10 * TOLERANCE
