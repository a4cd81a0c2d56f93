"""Image and mirror image in one forward equal two forwards, batch statistics included."""

import copy

import pytest
import torch
from torch import nn

from dcube.classifier.model import DCubeClassifier
from dcube.classifier.train import ClassifierLoss
from dcube.classifier.views import apart
from dcube.features.frozen import FrozenFeatures
from tiny import tiny_diffusion, tiny_experiment

BLOCKS = [2, 3]
Y = torch.tensor([0, 2, 1, 1, 0])


def classifier(cnn: str, head: str, frozen: FrozenFeatures) -> DCubeClassifier:
    """No dropout: it draws for a batch of two views what two batches would not."""
    config = tiny_experiment(classifier={"cnn": cnn, "head": head, "dropout": 0}).classifier
    torch.manual_seed(0)
    return DCubeClassifier(config, 3, [shape[0] for shape in frozen.shapes]).train()


@pytest.mark.parametrize(("cnn", "head"), [("test_efficientnet", "paper"), ("test_resnet", "late")])
def test_one_forward_equals_two(cnn: str, head: str) -> None:
    """Logits, gradients and running statistics, in float64 to rounding; images of two very different views."""
    frozen = FrozenFeatures(tiny_diffusion(), BLOCKS, "clean", 4)
    model = classifier(cnn, head, frozen).double()
    together, shared = copy.deepcopy(model), copy.deepcopy(model)
    views = [torch.rand(5, 1, 32, 32, dtype=torch.float64) * scale for scale in (1, 3)]
    maps = [[torch.randn(5, *shape, dtype=torch.float64) * scale for shape in frozen.shapes] for scale in (1, 3)]
    separate = torch.cat([model(image, of_it) for image, of_it in zip(views, maps, strict=True)])
    both = torch.cat(views), [torch.cat(pair) for pair in zip(*maps, strict=True)]
    with apart(together, 2):
        joined = together(*both)
    torch.testing.assert_close(joined, separate, rtol=1e-10, atol=1e-10)
    assert (shared(*both) - separate).abs().max() > 1e-3  # common statistics are something else
    weights = torch.randn(10, 3, dtype=torch.float64)
    (separate * weights).sum().backward()
    (joined * weights).sum().backward()
    for (name, one), other in zip(model.named_parameters(), together.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, buffer), found in zip(model.named_buffers(), together.buffers(), strict=True):
        torch.testing.assert_close(found, buffer, rtol=1e-10, atol=1e-12, msg=name)
    assert {int(m.num_batches_tracked) for m in together.modules() if isinstance(m, nn.BatchNorm2d)} == {2}


def test_outside_and_in_evaluation_nothing_is_split() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3)), torch.randn(6, 3)
    keys = set(vars(model[0]))
    with pytest.raises(RuntimeError, match="halfway"), apart(model, 2):
        assert vars(model[0]).keys() - keys == {"forward"}
        raise RuntimeError("halfway")
    assert set(vars(model[0])) == keys and torch.equal(model(x), nn.functional.batch_norm(x, None, None, training=True))
    model.eval()
    with apart(model, 2):
        assert set(vars(model[0])) == keys
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))


@pytest.mark.parametrize("cached", [True, False])
def test_a_step_equals_two_plain_forwards(cached: bool) -> None:
    """Eq. 8-10 of the image and of its mirror image, each by a forward of its own, in fp32."""
    frozen = FrozenFeatures(tiny_diffusion(), BLOCKS, "clean", 4)
    experiment = tiny_experiment(classifier={"lambda_cycle": 0, "lambda_consistency": 0.3})
    model = classifier("test_efficientnet", "paper", frozen)
    plain = copy.deepcopy(model)
    batch = {"large": torch.rand(5, 1, 32, 32), "small": torch.rand(5, 1, 8, 8), "y": Y, "t": torch.arange(5)}
    maps = [[m.half() for m in frozen(x, batch["t"])] for x in (batch["small"], batch["small"].flip(-1))]
    if cached:
        batch |= {f"map{i}": m for i, m in enumerate(maps[0])} | {f"mirror{i}": m for i, m in enumerate(maps[1])}
    loss, parts = ClassifierLoss(experiment, frozen, Y.numpy(), 3)(model, batch, 0)
    logits, mirrored = (
        plain(x, [m.float().clone() for m in of_it])
        for x, of_it in zip((batch["large"], batch["large"].flip(-1)), maps, strict=True)
    )
    expected = nn.functional.cross_entropy(logits, Y) + 0.3 * (logits - mirrored).square().sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6 if cached else 1e-3, atol=1e-6)
    assert parts["consistency"] > 1e-6
    for found, buffer in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, buffer, rtol=1e-5 if cached else 1e-2, atol=1e-6 if cached else 1e-3)


@pytest.mark.parametrize("outer", [False, True])
def test_the_cycle_term_in_bf16_stays_close(outer: bool) -> None:
    """The frozen model's dtype decides, not the classifier's; the gradient on the logits points the same way."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        frozen = FrozenFeatures(tiny_diffusion(), BLOCKS, "clean", 4, dtype)
        experiment = tiny_experiment(classifier={"lambda_cycle": 10, "lambda_consistency": 0})
        batch = {
            "large": torch.zeros(5, 1, 1, 1), "small": torch.rand(5, 1, 8, 8, generator=torch.manual_seed(1)), "y": Y,
            "cycle_t": torch.arange(5), "cycle_noise": torch.randn(5, 1, 8, 8, generator=torch.manual_seed(2)),
            "map0": torch.zeros(5, 1, 1, 1), "map1": torch.zeros(5, 1, 1, 1),
        }  # fmt: skip
        model = Logits()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
            loss, parts = ClassifierLoss(experiment, frozen, Y.numpy(), 3)(model, batch, 0)
        (10 * (loss - parts["cross_entropy"])).backward()
        assert loss.dtype == torch.float32 and model.logits.grad is not None
        found.append((parts["cycle"], model.logits.grad))
    (exact, slope), (fast, other) = found
    assert 1e-6 < abs(fast - exact) / exact < 2e-2
    assert torch.cosine_similarity(slope.flatten(), other.flatten(), dim=0) > 0.999


class Logits(nn.Module):
    """Stands in for the classifier: logits that are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(5, 3, generator=torch.manual_seed(0)))

    def forward(self, images: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.logits + 0 * images.mean()
