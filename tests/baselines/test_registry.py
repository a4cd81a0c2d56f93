"""Everything registered: it runs at two sizes, learns with every parameter, is saved and loaded, and answers alike."""

from pathlib import Path

import pytest
import torch

from dcube.baselines.base import System
from dcube.baselines.diffmic import DiffMIC
from dcube.baselines.registry import ATTENTION, LIKE_RESNET, LIKE_VIT, REGISTRY, baseline, create
from dcube.errors import InputError
from dcube.training.order import torch_rng
from dcube.training.state import load_weights, save_weights

SLOW = {
    *("resnet101", "resnext101", "resnest101", "vit_b16", "pit_b", "t2t_vit_14", "cvt_13", "cpt", "densenet121"),
    *("diffmic", "guidance", "diffmic_resnet18", "guidance_resnet18"),
    *("radio_full", "radio_lora", "radio_linear", "medclip_linear"),
}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in REGISTRY]
CLASSES = 3
BYPASSED = "stages.2.layers.9.attention.attention.convolution_projection_query"  # CvT: all but the class token, unread
CHAIN = 20  # steps of DiffMIC's chain here
NEEDS_TRANSFORMERS = {"cvt_13", "mit_b0", "pvt_tiny", "radio_lora"}


def build(name: str, size: int) -> System:
    if name in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
        pytest.importorskip("peft")
    system, source = create(name, CLASSES, 1, size, weights="none")
    assert "random" in source
    with torch.no_grad():  # LoRA's second matrix begins at 0: then the first has no gradient
        for parameter in system.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) * parameter.requires_grad)
    return shortened(system)


def shortened(system: System) -> System:
    if isinstance(system, DiffMIC):
        system.times = system.times[:: max(1, len(system.times) // CHAIN)]
    return system


def check_gradients(system: System, size: int) -> None:
    """Over its stages, every trainable parameter gets a finite gradient that is not all 0; a frozen one gets none."""
    images, labels = torch.rand(4, 1, size, size), torch.tensor([0, 1, 2, 0])
    stages = system.stages()
    assert sum(stage.share for stage in stages) == pytest.approx(1) and stages[-1].loss == system.loss
    for stage in stages:
        loss, parts = stage.loss(images, labels, torch_rng(0, "test"))
        assert loss.shape == () and torch.isfinite(loss) and parts
        assert not any(part.requires_grad for part in parts.values())
        loss.backward()
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0 or BYPASSED in name, f"{name} does not learn"
        else:
            assert parameter.grad is None, name
    grouped = [id(p) for group in system.parameter_groups() for p in group["params"] if p.requires_grad]
    assert sorted(grouped) == sorted(id(p) for p in system.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_registered(name: str, tmp_path: Path, size: int = 64) -> None:
    smaller = build(name, 32).eval()
    with torch.no_grad():
        assert torch.isfinite(smaller(torch.rand(2, 1, 32, 32))).all()
    system = build(name, size)
    check_gradients(system, size)
    system.eval()
    images = torch.rand(3, 1, size, size)
    with torch.no_grad():
        logits = system(images)
    together = system.probabilities(images, seed=1)
    assert logits.shape == together.shape == (3, CLASSES) and torch.isfinite(logits).all()
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    torch.testing.assert_close(system.probabilities(images[1:2], seed=1), together[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(system.probabilities(images.expand(-1, 3, -1, -1), seed=1), together)

    save_weights(tmp_path / "model.safetensors", system, {"name": name})
    tensors, _ = load_weights(tmp_path / "model.safetensors")
    again, _ = create(name, CLASSES, 1, size, weights="none")
    shortened(again).load_state_dict(tensors)
    assert torch.equal(again.eval().probabilities(images, seed=1), together)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_what_the_list_says(name: str) -> None:
    entry = REGISTRY[name]
    assert entry.title and entry.weights and entry.recipe.row
    assert any(character.isdigit() for character in entry.citation)
    assert 1e-6 < entry.recipe.lr < 1e-1 and 0 < entry.recipe.epochs <= 1000


def test_any_model_of_timm() -> None:
    system, source = create("test_resnet", 2, 3, 32, weights="none")
    assert source == "random" and system(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    assert baseline("test_resnet").recipe == LIKE_RESNET and baseline("test_vit").recipe == LIKE_VIT
    assert "none in table IX" in LIKE_VIT.row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet19"}, "There is no model 'resnet19' .did you mean resnet1"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"num_classes": 1}, "2 classes or more"),
        ({"size": 16}, "images of 32 .. 1024 px"),
        ({"weights": "magic"}, "no weights 'magic'"),
        ({"weights_file": "/no/such.pth"}, "no weights file '/no/such.pth'"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, object], message: str) -> None:
    given = {"name": "resnet18", "num_classes": 3, "channels": 1, "size": 64, "weights": "auto"} | changes
    with pytest.raises(InputError, match=message):
        create(**given)  # type: ignore[arg-type]


CNNS = [
    "byobnet", "byoanet", "convmixer", "convnext", "cpubone", "cspnet", "csatv2", "cspnext", "densenet", "dla",
    "nfnet", "dpn", "vovnet", "resnet", "efficientnet", "efficientvim", "fasternet", "mobilenetv3", "focalnet",
    "ghostnet", "hardcorenas", "hgnet", "hrnet", "inception_next", "inception_resnet_v2", "inception_v3",
    "inception_v4", "lcnetv2", "senet", "xception", "mambaout", "mobilenetv5", "nasnet", "pnasnet", "rdnet",
    "regnet", "repghost", "repvit", "res2net", "resnest", "resnetv2", "rexnet", "selecsls", "sknet", "starnet",
    "tresnet", "vgg", "xception_aligned",
]  # fmt: skip


def test_every_family_of_timm_has_the_recipe_of_its_like() -> None:
    """None is both, and none is new: whoever updates timm says which it is."""
    import timm

    known = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert not ATTENTION & set(CNNS) and known <= ATTENTION | set(CNNS)
    for name in ("deit_tiny_patch16_224", "pit_ti_224", "xcit_nano_12_p16_224", "twins_svt_small", "pvt_v2_b1"):
        assert baseline(name).recipe == LIKE_VIT
    for name in ("repvit_m1", "resnest14d", "convnext_atto"):
        assert baseline(name).recipe == LIKE_RESNET
