"""What every registered backbone must do, at two sizes and with one and three channels."""

import hashlib
from typing import Any

import pytest
import torch

from dcube.config import DiffusionConfig
from dcube.diffusion.backbone import Denoiser
from dcube.diffusion.build import build_denoiser
from tiny import randomise

SIZES: dict[str, list[dict[str, Any]]] = {
    "uvit": [
        {"image_size": 16, "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2}},
        {"image_size": 24, "uvit": {"patch": 8, "width": 32, "depth": 4, "heads": 4}},
        {"image_size": 16, "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2, "stem": "conv"}},
    ],
    "unet": [
        {"image_size": 16, "unet": {"widths": (8, 16), "groups": 4}},
        {"image_size": 24, "unet": {"widths": (8, 16, 32), "groups": 2, "patch": 2}},
        {"image_size": 16, "unet": {"widths": (8, 16), "groups": 4, "layers": 2, "attention": (2,)}},
    ],
}
CASES = [(name, size, channels) for name in SIZES for size in range(3) for channels in (1, 3)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}ch")
def case(request: pytest.FixtureRequest) -> tuple[Denoiser, torch.Tensor, torch.Tensor]:
    """A backbone with random weights in float64, a batch of noisy images, their timesteps."""
    name, size, channels = request.param
    config = DiffusionConfig.model_validate({"backbone": name, **SIZES[name][size]})
    model = build_denoiser(config, channels, num_classes=3).double()
    randomise(model)
    x_t = torch.randn(4, channels, config.image_size, config.image_size, dtype=torch.float64)
    return model, x_t, torch.tensor([0, 3, 400, 999])


def test_every_backbone_of_the_configuration_is_here() -> None:
    assert set(SIZES) == set(DiffusionConfig.model_fields["backbone"].annotation.__args__)  # type: ignore[union-attr]


def test_output_is_finite_and_every_parameter_gets_a_gradient(case: Any) -> None:
    model, x_t, t = case
    noise, _ = model(x_t, t, torch.tensor([0, 1, 2, 3]))
    assert noise.shape == x_t.shape and torch.isfinite(noise).all() and noise.abs().max() > 0
    noise.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_taps_with_and_without_early_exit_agree(case: Any) -> None:
    model, x_t, t = case
    y = torch.tensor([2, 0, 1, 3])
    noise, features = model(x_t, t, y, taps=model.blocks)
    assert tuple(features) == model.blocks and model.middle in model.blocks
    assert torch.equal(noise, model(x_t, t, y)[0])
    for i, name in enumerate(model.blocks):
        entered: list[str] = []
        run = model._run

        def watched(*arguments: Any, entered: list[str] = entered, run: Any = run) -> Any:
            for name, value in run(*arguments):
                entered.append(name)
                yield name, value

        model._run = watched
        nothing, early = model(x_t, t, y, taps=(name,), stop=True)
        model._run = run
        assert nothing is None and torch.equal(early[name], features[name])
        assert entered == list(model.blocks[: i + 1])  # nothing later is computed
        shape = model.as_map(features[name]).shape
        assert shape[0] == 4 and shape[2] == shape[3]


def test_a_soft_label_of_one_class_is_that_label(case: Any) -> None:
    model, x_t, t = case
    y = torch.tensor([0, 1, 2, 1])
    hard, _ = model(x_t, t, y)
    soft, _ = model(x_t, t, torch.nn.functional.one_hot(y, 3).double())
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-12)
    mixed = model.embed_label(torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64), 1)[0]
    table = model.labels.weight
    torch.testing.assert_close(mixed, 0.2 * table[0] + 0.5 * table[1] + 0.3 * table[2])


def test_a_soft_label_is_not_rounded_by_autocast() -> None:
    model = build_denoiser(DiffusionConfig.model_validate(SIZES["unet"][0] | {"backbone": "unet"}), 1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hard, soft = model.embed_label(torch.tensor([1]), 1), model.embed_label(torch.tensor([[0.0, 1.0, 0.0]]), 1)
    assert torch.equal(hard, soft)


def test_no_label_is_the_null_label(case: Any) -> None:
    model, x_t, t = case
    null, _ = model(x_t, t, torch.full((4,), model.null_label))
    assert torch.equal(model(x_t, t)[0], null)
    assert not torch.equal(model(x_t, t, torch.zeros(4, dtype=torch.long))[0], null)


def test_an_unknown_block_is_named(case: Any) -> None:
    model, x_t, t = case
    with pytest.raises(ValueError, match="block99"):
        model(x_t, t, taps=("block99",))


def test_images_do_not_see_one_another(case: Any) -> None:
    model, x_t, t = case
    both = model(x_t, t)[0]
    torch.testing.assert_close(model(x_t[2:3], t[2:3])[0], both[2:3], rtol=0, atol=1e-12)


def build(backbone: str, **options: Any) -> Denoiser:
    torch.manual_seed(0)
    config = DiffusionConfig.model_validate({"backbone": backbone, "image_size": 16, backbone: options})
    return build_denoiser(config, 1, 3)


def test_attention_and_layers_of_the_unet_are_where_they_are_asked_for() -> None:
    plain = {"widths": (8, 16), "groups": 4}
    model = build("unet", **plain, layers=3, attention=(2,))
    kinds = {name: [type(part).__name__ for part in parts] for name, parts in model.more.items()}  # type: ignore
    deep = ["MapAttention", "Residual", "MapAttention", "Residual", "MapAttention"]
    assert kinds == {"down1": ["Residual"] * 2, "down2": deep, "up2": deep, "up1": ["Residual"] * 2}
    usual = build("unet", **plain)
    assert set(usual.state_dict()) < set(model.state_dict()) and len(usual.more) == 0  # type: ignore[arg-type]
    for name in usual.state_dict().keys() - {"norm.weight"}:
        assert usual.state_dict()[name].shape == model.state_dict()[name].shape


def test_new_layers_of_the_unet_start_as_the_identity() -> None:
    """Their last convolution and projection are zero: from the first step on the network is the usual one."""
    model = build("unet", widths=(8, 16), groups=4, layers=2, attention=(1, 2))
    randomise(model.final)
    usual = build("unet", widths=(8, 16), groups=4)
    usual.load_state_dict(model.state_dict(), strict=False)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([0, 700])
    assert model(x, t)[0].abs().max() > 0  # type: ignore[union-attr]
    assert torch.equal(model(x, t)[0], usual(x, t)[0])


def test_the_convolutional_stem_sees_what_a_patch_does() -> None:
    """log2(patch) convolutions of stride 2, widths doubling to half the tokens', and as many tokens as a patch stem."""
    model = build("uvit", patch=8, width=32, depth=2, heads=2, stem="conv")
    sizes = [(m.in_channels, m.out_channels, m.stride[0]) for m in model.embed if isinstance(m, torch.nn.Conv2d)]  # type: ignore
    assert sizes == [(1, 8, 2), (8, 8, 2), (8, 16, 2), (16, 32, 1)]
    x = torch.randn(2, 1, 16, 16)
    assert model.embed(x).shape == build("uvit", patch=8, width=32, depth=2, heads=2).embed(x).shape  # type: ignore


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("uvit", {"patch": 6, "stem": "conv"}, "power of 2"),
        ("uvit", {"patch": 1, "stem": "conv"}, "power of 2"),
        ("unet", {"widths": (8, 16), "groups": 4, "attention": (3,)}, "attention at level 3"),
    ],
)
def test_options_that_cannot_be_built_are_refused(backbone: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(backbone, **options)


@pytest.mark.parametrize(("backbone", "expected"), [("uvit", "47022073100a7181"), ("unet", "c290f0530e646677")])
def test_the_parameters_of_the_defaults_keep_names_and_order(backbone: str, expected: str) -> None:
    """Weights are loaded by name, and a checkpoint's optimiser counts on the order."""
    options = {
        "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2}, "unet": {"widths": (8, 16), "groups": 4},
    }[backbone]  # fmt: skip
    shapes = [(name, tuple(p.shape)) for name, p in build(backbone, **options).named_parameters()]
    assert hashlib.sha256(repr(shapes).encode()).hexdigest()[:16] == expected
