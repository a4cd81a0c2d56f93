"""Weights by name, by file, or random with a note that nobody misses."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dcube.baselines import weights
from dcube.baselines.registry import create
from dcube.errors import InputError


def refuse(*_: object) -> nn.Module:
    raise ConnectionError("no route")


def test_by_name() -> None:
    named = nn.Linear(1, 1)
    built, source = weights.named_or_random("x", "auto", lambda: named, lambda: nn.Linear(1, 1), "ImageNet (y)")
    assert built is named and source == "ImageNet (y)"


def test_random_ones_are_loud() -> None:
    with pytest.warns(UserWarning, match="RANDOM: the weights of x could not be downloaded .ConnectionError."):
        _, source = weights.named_or_random("x", "auto", refuse, lambda: nn.Linear(1, 1), "ImageNet")
    assert source.startswith("RANDOM: ")
    with pytest.raises(InputError, match="The weights of x could not be downloaded .ConnectionError.; give a file"):
        weights.named_or_random("x", "hub", refuse, lambda: nn.Linear(1, 1), "ImageNet")
    assert weights.named_or_random("x", "none", refuse, lambda: nn.Linear(1, 1), "ImageNet")[1] == "random"


def test_without_a_name_service_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is then asked for what is cached alone; with one, or behind a proxy, as usual."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for resolves in (True, False):
        monkeypatch.setattr(weights, "_resolves", lambda host, answer=resolves: answer)
        with weights.patience():
            assert constants.HF_HUB_OFFLINE is not resolves
        assert constants.HF_HUB_OFFLINE is False
    monkeypatch.undo()
    monkeypatch.setattr(weights, "getproxies", lambda: {"https": "a proxy"})
    assert weights._resolves("no-such-host.invalid")
    monkeypatch.setattr(weights, "getproxies", dict)
    assert not weights._resolves("no-such-host.invalid")


@pytest.mark.parametrize(("name", "ours"), [("test_vit", "test_vit"), ("resnet18", "resnet18")])
def test_file_of_timm_at_another_size(name: str, ours: str, tmp_path: Path) -> None:
    """As timm itself reads it: a position table is resized, the head left out."""
    known = timm.get_pretrained_cfg(name)
    options = {"img_size": 160} if known.fixed_input_size else {}
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model(name, num_classes=7, **options).state_dict(), file)
    system, source = create(ours, 3, 1, 64, weights_file=file)
    options = {"img_size": 64} if known.fixed_input_size else {}
    overlay = {"file": str(file), "num_classes": 7}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **options)
    assert source == "file w.safetensors"
    mine = system.network.state_dict()
    assert all(torch.equal(mine[key], tensor) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["pvt_tiny", "mit_b0"])
def test_file_of_transformers_at_another_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    given, _ = create(name, 5, 1, 96, weights="none")
    file = tmp_path / "w.safetensors"
    save_file(given.network.state_dict(), file)
    system, source = create(name, 3, 1, 64, weights_file=file)
    mine = system.network.state_dict()
    for key, tensor in given.network.state_dict().items():
        if tensor.shape == mine[key].shape:
            assert torch.equal(tensor, mine[key]), key
        else:
            assert "position" in key or key.startswith("classifier")
    same, _ = create(name, 3, 1, 96, weights_file=file)
    assert source == "file w.safetensors" and system(torch.rand(1, 1, 64, 64)).shape == (1, 3)
    body = [key for key in mine if not key.startswith("classifier")]
    assert all(torch.equal(same.network.state_dict()[key], given.network.state_dict()[key]) for key in body)


def test_file_of_torchvision(tmp_path: Path) -> None:
    given, _ = create("shufflenet_v2", 5, 1, 64, weights="none")
    torch.save(given.network.state_dict(), tmp_path / "w.pth")
    system, _ = create("shufflenet_v2", 3, 1, 64, weights_file=tmp_path / "w.pth")
    assert torch.equal(system.network.conv1[0].weight, given.network.conv1[0].weight)
    assert system.network.fc.weight.shape == (3, 1024)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2", "t2t_vit_7", "cpt_small"])
def test_a_file_that_does_not_fit(name: str, tmp_path: Path) -> None:
    save_file({"something.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not fit .* tensors lack, such as"):
        create(name, 3, 1, 64, weights_file=tmp_path / "w.safetensors")
    torch.save({"code": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot be read safely"):
        create(name, 3, 1, 64, weights_file=tmp_path / "w.pth")
    torch.save({"epoch": 3, "conv": torch.zeros(1)}, tmp_path / "n.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        create(name, 3, 1, 64, weights_file=tmp_path / "n.pth")


def test_positions_resized() -> None:
    """A plane stays a plane, class tokens stay in front, the same size changes nothing."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([rows, columns], -1).view(36, 2)])[None]
    assert torch.equal(weights.resize_positions(table, 37), table)
    larger = weights.resize_positions(table, 145)[0]
    assert torch.equal(larger[0], table[0, 0])
    grid = larger[1:].view(12, 12, 2)
    torch.testing.assert_close(grid[4, 4:8, 1].diff(), torch.full((3,), 0.5), atol=0.05, rtol=0)
    assert (grid[..., 0].diff(dim=0) > -0.1).all()
