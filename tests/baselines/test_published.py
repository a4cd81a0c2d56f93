"""Published parameter counts, in millions, for 1000 classes; models are built without memory where they are large."""

import pytest
import timm
import torch

from dcube.baselines.registry import create
from dcube.baselines.t2t import SIZES, T2TViT


def millions(model: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(("number", "published"), [(7, 4.3), (10, 5.9), (12, 6.9), (14, 21.5), (19, 39.2), (24, 64.1)])
def test_t2t_vit(number: int, published: float) -> None:
    """Their count includes the fixed tables (positions and random features), which are buffers here."""
    with torch.device("meta"):
        model = T2TViT(SIZES[number], 1000)
    fixed = sum(buffer.numel() for buffer in model.buffers()) / 1e6
    assert round(millions(model) + fixed, 1) == published


@pytest.mark.parametrize(
    ("name", "published", "unit"),
    [
        *(("shufflenet_v2", 2.278604, 1e-6), ("pvt_v2_b0", 3.7, 0.05), ("resnet18", 11.689512, 1e-6)),
        *(("vit_ti16", 5.717416, 1e-6), ("efficientnet_lite0", 4.652008, 1e-6), ("densenet121", 7.978856, 1e-6)),
    ],
)
def test_small_networks(name: str, published: float, unit: float) -> None:
    system, _ = create(name, 1000, 3, 224, weights="none")
    assert millions(system) == pytest.approx(published, abs=unit)


@pytest.mark.parametrize(("name", "published"), [("pvt_tiny", 13.2), ("mit_b0", 3.6), ("cvt_13", 20.0)])
def test_networks_of_transformers(name: str, published: float) -> None:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        system, _ = create(name, 1000, 3, 224, weights="none")
    assert millions(system) == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        *(("resnet101", 44.549160), ("resnext101_32x8d", 88.791336), ("resnest101e", 48.275016)),
        *(("vit_base_patch16_224", 86.567656), ("pit_b_224", 73.764840)),
    ],
)
def test_large_networks_of_timm(name: str, published: float) -> None:
    with torch.device("meta"):
        assert millions(timm.create_model(name, num_classes=1000)) == pytest.approx(published, abs=1e-6)


def test_parts_of_diffmic() -> None:
    """ResNet-50 has 25.557032 M parameters, 2.049 M of them in its last layer; ResNet-18 11.689512 M, 0.513 M."""
    with torch.device("meta"):
        system, _ = create("diffmic", 2, 3, 224, weights="none")
    guidance, denoiser = system.guidance, system.denoiser
    assert millions(guidance.coarse) == pytest.approx(25.557032 - 2.049, abs=1e-6) == millions(guidance.fine)
    assert millions(denoiser.encoder) == pytest.approx(11.689512 - 0.513, abs=1e-6)
    assert denoiser.project.weight.shape == (6144, 512) and denoiser.first.scale.weight.shape == (1001, 6144)
