"""What of a foundation model is trained, and MedCLIP's tower and preprocessing."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dcube.baselines import foundation
from dcube.baselines.backbones import Request
from dcube.baselines.registry import create
from dcube.baselines.weights import load_into
from dcube.errors import InputError
from dcube.training.order import torch_rng

IMAGES, LABELS = torch.rand(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])


def trained(tuning: foundation.Tuning, name: str = "test_vit") -> tuple[foundation.Foundation, set[str]]:
    system, _ = foundation.foundation(name, tuning)(Request(3, 32, "none"))
    assert isinstance(system, foundation.Foundation)
    before = {key: value.clone() for key, value in system.state_dict().items()}
    optimizer = torch.optim.SGD([p for group in system.parameter_groups() for p in group["params"]], lr=0.1)
    for step in range(2):  # LoRA's first matrix moves only when its second has
        system.train()
        optimizer.zero_grad()
        system.loss(IMAGES, LABELS, torch_rng(0, step))[0].backward()
        optimizer.step()
    return system, {key for key, value in system.state_dict().items() if not torch.equal(value, before[key])}


def test_linear_probe_moves_the_head_alone() -> None:
    system, moved = trained("linear", "test_resnet")  # with batch normalisation, whose averages must rest too
    assert moved == {"head.weight", "head.bias"} == {name for name, p in system.named_parameters() if p.requires_grad}
    assert not system.backbone.training and system.head.training


def test_full_tuning_moves_everything() -> None:
    system, moved = trained("full")
    assert moved == {name for name, p in system.named_parameters()}


def test_lora_moves_low_rank_additions_to_the_attention() -> None:
    pytest.importorskip("peft")
    system, moved = trained("lora")
    moved -= {"head.weight", "head.bias"}
    assert moved and all(".attn." in name and "lora_" in name for name in moved)
    plain = timm.create_model("test_vit", img_size=32, num_classes=0)
    assert len(moved) == 2 * 2 * len(plain.blocks)  # qkv and proj, two matrices each
    shapes = {system.state_dict()[name].shape for name in moved}
    assert all(min(shape) == foundation.LORA_RANK for shape in shapes)


def test_lora_begins_as_the_network_it_adapts() -> None:
    pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", img_size=32, num_classes=0).eval()
    x = torch.rand(2, 3, 32, 32)
    before = plain(x)
    torch.testing.assert_close(foundation.with_lora(plain)(x), before)


def test_medclip_preprocessing() -> None:
    """At 224 px nothing is resized; colour becomes grey."""
    images = torch.rand(2, 3, 224, 224)
    expected = (images.numpy().mean(1, keepdims=True) - 0.5862785803) / 0.27950088968
    made = foundation.MedCLIPImages()(images)
    np.testing.assert_allclose(made.numpy(), np.repeat(expected, 3, axis=1), rtol=1e-5, atol=1e-5)
    assert foundation.MedCLIPImages()(torch.rand(1, 1, 64, 64)).shape == (1, 3, 224, 224)


OLD_NAMES = (  # of transformers before version 5, in which MedCLIP's weights are stored
    *(("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key")),
    *(("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense")),
    *(("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense")),
    ("mlp.fc2", "output.dense"),
)


def test_weights_of_transformers_swin_mean_the_same_in_timm() -> None:
    """A small Swin of transformers, renamed as in MedCLIP's file, with a text tower beside it."""
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=64, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4)
    theirs = transformers.SwinModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    stored = {"text_model.embeddings.weight": torch.zeros(3), "logit_scale": torch.zeros(1)}
    for name, tensor in theirs.state_dict().items():
        for new, old in OLD_NAMES:
            name = name.replace(new, old)
        stored[f"vision_model.model.{name}"] = tensor
    stored["vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_index"] = torch.zeros(16, 16)
    ours = timm.create_model(
        foundation.SWIN, num_classes=0, img_size=64, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4
    ).eval()
    load_into(ours, foundation.swin_from_transformers(stored), "file", "head")
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x).pooler_output, rtol=1e-4, atol=1e-5)


def test_medclip_without_weights_says_so_and_a_wrong_file_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="RANDOM: MedCLIP"):
        _, source = create("medclip_linear", 2, 1, 64)
    assert source.startswith("RANDOM")
    save_file({"vision_model.model.layernorm.weight": torch.zeros(768)}, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match="does not fit this model: .* tensors lack"):
        create("medclip_linear", 2, 1, 64, weights_file=tmp_path / "wrong.safetensors")
