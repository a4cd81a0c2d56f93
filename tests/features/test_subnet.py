"""The CNN beside the diffusion features: where its weights come from, and what does not fit."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from dcube.errors import InputError
from dcube.features.subnet import OFFLINE_PACKAGE, SubNetwork, create_cnn

CNN = "test_efficientnet"


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return timm.create_model(CNN, pretrained=False, num_classes=0).state_dict()


@pytest.mark.skipif(importlib.util.find_spec(OFFLINE_PACKAGE) is None, reason="the extra 'offline' is not installed")
def test_offline_weights_are_the_packages() -> None:
    """Every tensor of the package is in the model, in its order, and BatchNorm statistics are no initialisation."""
    cnn, source = create_cnn("tf_efficientnet_lite0", "auto")
    assert "ImageNet" in source
    package = importlib.util.find_spec(OFFLINE_PACKAGE)
    assert package is not None and package.origin is not None
    file = next(Path(package.origin).parent.rglob("*.pth"))
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    mine = list(cnn.state_dict().values())
    assert len(mine) > 290 and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=False))
    assert cnn.bn1.running_var.std() > 0
    with torch.inference_mode():
        assert torch.isfinite(cnn(torch.rand(1, 3, 64, 64))).all()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_from_a_file(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    path, given = tmp_path / f"w{suffix}", weights() | {"classifier.weight": torch.zeros(3)}
    if suffix == ".pth":
        torch.save({"state_dict": given, "epoch": 3} if wrapped else given, path)
    else:
        save_file(given, path)
    cnn, source = create_cnn(CNN, str(path))
    assert source == f"file {path.name}"
    assert all(torch.equal(tensor, given[name]) for name, tensor in cnn.state_dict().items())


def bad_file(path: Path, kind: str) -> Path:
    given = weights()
    if kind == "shape":
        given["conv_stem.weight"] = given["conv_stem.weight"][:, :1].contiguous()
    elif kind == "missing":
        del given["conv_stem.weight"]
    if kind in ("shape", "missing"):
        save_file(given, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    contents = {"code": {"state_dict": Path("x")}, "list": [1, 2], "numbers": dict.fromkeys(given, 1.0)}
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_bytes(b"text" if kind == "text" else b"")
    return path


@pytest.mark.parametrize("kind", ["shape", "missing", "code", "list", "numbers", "text", "empty"])
def test_a_file_that_does_not_fit(tmp_path: Path, kind: str) -> None:
    """`code`: a pickle that holds more than tensors is never executed."""
    file = bad_file(tmp_path / "w.pth", kind)
    with pytest.raises(InputError) as error:
        create_cnn(CNN, str(file))
    message = str(error.value)
    assert str(file) in message and "\n" not in message
    assert ("cannot be read safely" if kind in ("code", "text", "empty") else "does not fit") in message


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(InputError, match="cannot be read safely"):
        create_cnn(CNN, str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (CNN, "/no/such/file.pth", "there is no file"),
        ("efficientnet_b99", "none", "timm has no model 'efficientnet_b99' .did you mean"),
        ("resnet18", "offline", "only for tf_efficientnet_lite0"),
    ],
)
def test_what_does_not_exist(name: str, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_cnn(name, source)


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("no route")
        return real(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="could not be downloaded .ConnectionError.; give a file by"):
        create_cnn(CNN, "hub")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [CNN, "test_resnet", "test_vit"])
def test_feature_map_of_any_timm_model(name: str, channels: int) -> None:
    net = SubNetwork(name, "none").eval()
    feature = net(torch.rand(2, channels, 160, 160))
    assert feature.ndim == 4 and feature.shape[:2] == (2, net.width) and feature.shape[2] == feature.shape[3]


def test_images_are_normalised_as_the_weights_expect() -> None:
    net = SubNetwork(CNN, "none").eval()
    images = torch.rand(2, 1, 32, 32)
    mean, std = (torch.tensor(net.cnn.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = net.cnn.forward_features((images.repeat(1, 3, 1, 1) - mean) / std)
    torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-6)
