"""Augmentation with its parameters told: against torchvision, by its frequencies, and that it does not leak."""

import math

import pytest
import torch
from torchvision.transforms.functional import InterpolationMode, affine

from dcube.config import AugmentationConfig
from dcube.diffusion.augment import PARAMETERS, apply_parameters, draw_parameters
from dcube.diffusion.build import build_denoiser
from tiny import tiny_denoiser, tiny_experiment

S = 48


def pictures(count: int) -> torch.Tensor:
    """Smooth images in [-1, 1], so that interpolation is not what is compared."""
    noise = torch.randn(count, 1, S // 8, S // 8)
    return torch.nn.functional.interpolate(noise, size=(S, S), mode="bicubic").clamp(-0.9, 0.9)


def parameters(**values: float) -> torch.Tensor:
    return torch.tensor([[values.get(name, 0.0) for name in PARAMETERS]])


def test_nothing_told_is_nothing_done() -> None:
    x, told = pictures(4), torch.zeros(4, len(PARAMETERS))
    told[2, 1] = 0.7
    out = apply_parameters(x, told)
    assert torch.equal(out[[0, 1, 3]], x[[0, 1, 3]]) and not torch.equal(out[2], x[2])


@pytest.mark.parametrize(
    ("values", "oracle"),
    [
        ({"rotation": 0.8}, {"angle": 0.8 * 15, "translate": [0, 0], "scale": 1.0}),
        ({"scale": 1.5}, {"angle": 0, "translate": [0, 0], "scale": 2**0.15}),
        ({"shift_x": 1.0}, {"angle": 0, "translate": [0.05 * S, 0], "scale": 1.0}),
        ({"shift_y": -2.0}, {"angle": 0, "translate": [0, -0.1 * S], "scale": 1.0}),
        (
            {"rotation": -1, "scale": -1, "shift_x": 0.5, "shift_y": 1.0},
            {"angle": -15, "translate": [0.025 * S, 0.05 * S], "scale": 2**-0.1},
        ),
    ],
)
def test_geometry_is_that_of_torchvision(values: dict[str, float], oracle: dict[str, float]) -> None:
    x, inside = pictures(1), slice(12, S - 12)
    ours = apply_parameters(x, parameters(**values))
    theirs = affine(x, **oracle, shear=[0.0], interpolation=InterpolationMode.BILINEAR)  # type: ignore[arg-type]
    assert (theirs - x)[..., inside, inside].abs().max() > 0.05
    torch.testing.assert_close(ours[..., inside, inside], theirs[..., inside, inside], rtol=0, atol=1e-4)
    assert not (ours == 0).any()  # no empty border comes in


def test_mirror_brightness_and_contrast() -> None:
    x = pictures(1)
    assert torch.equal(apply_parameters(x, parameters(mirror=1)), x.flip(-1))
    lighter = apply_parameters(x, parameters(brightness=0.5, contrast=1.0))
    torch.testing.assert_close(lighter, (x * 2**0.2 + 0.1).clamp(-1, 1))
    assert apply_parameters(x, parameters(brightness=9)).max() == 1


@pytest.mark.parametrize(("probability", "strength", "mirror"), [(0.15, 1.0, True), (0.5, 0.4, False)])
def test_frequencies_and_ranges(probability: float, strength: float, mirror: bool) -> None:
    config = AugmentationConfig(probability=probability, strength=strength)
    told = draw_parameters(20_000, config, mirror, torch.Generator().manual_seed(0))
    done = told != 0
    assert math.isclose(done[:, 0].float().mean().item(), 0.5 if mirror else 0, abs_tol=0.02)
    for column in range(1, len(PARAMETERS)):
        assert math.isclose(done[:, column].float().mean().item(), probability, abs_tol=0.02), PARAMETERS[column]
        spread = told[done[:, column], column].std().item()
        assert math.isclose(spread, strength / (math.sqrt(3) if column == 1 else 1), rel_tol=0.05), PARAMETERS[column]
    assert told[:, 1].abs().max() <= strength and set(told[:, 0].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(done[:, 3], done[:, 4])  # a shift has both directions
    both = (done[:, 1] & done[:, 2]).float().mean().item()
    assert math.isclose(both, probability**2, abs_tol=0.02)  # each on its own


def test_the_network_begins_deaf_to_it_and_without_it_has_the_same_weights() -> None:
    """Sampling and features give no parameters: the network then takes the image as not changed."""
    plain, told = (tiny_experiment(diffusion={"augmentation": {"probability": p}}).diffusion for p in (0, 0.1))
    torch.manual_seed(0)
    one = build_denoiser(plain, 1, 3)
    torch.manual_seed(0)
    other = build_denoiser(told, 1, 3)
    extra = set(other.state_dict()) - set(one.state_dict())
    assert extra == {"augmentation.weight"} and not other.augmentation.weight.any()  # type: ignore[union-attr]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("backbone", ["unet", "uvit"])
def test_the_network_can_heed_it(backbone: str) -> None:
    uvit = {"patch": 2, "width": 16, "depth": 2, "heads": 2}
    model = tiny_denoiser(augmentation={"probability": 0.1}, backbone=backbone, uvit=uvit)
    x, t, told = torch.randn(2, 1, 8, 8).double(), torch.tensor([1, 5]), torch.randn(2, len(PARAMETERS)).double()
    plain = model(x, t)[0]
    assert torch.equal(model(x, t, augmentation=torch.zeros_like(told))[0], plain)
    assert not torch.allclose(model(x, t, augmentation=told)[0], plain)
