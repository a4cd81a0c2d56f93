"""The heads: any number of classes and any feature size; the paper's against a plain reading in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn

from dcube.classifier.head import HEADS, PaperHead, resize
from tiny import randomise


def build(name: str, blocks: tuple[int, ...], num_classes: int, grid: int, width: int, cnn_width: int = 6) -> nn.Module:
    head = HEADS[name](blocks, cnn_width, num_classes, grid, width, 0.5).double()
    randomise(head)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return head


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("num_classes", "grid", "sizes"), [(2, 4, (8,)), (3, 5, (2, 7)), (7, 16, (16, 1, 4))])
def test_any_classes_and_sizes(name: str, num_classes: int, grid: int, sizes: tuple[int, ...]) -> None:
    blocks = tuple(4 + 4 * i for i in range(len(sizes)))
    head = build(name, blocks, num_classes, grid, width=8)
    maps = [torch.randn(5, c, s, s, dtype=torch.float64) for c, s in zip(blocks, sizes, strict=True)]
    logits = head(torch.randn(5, 6, 3, 3, dtype=torch.float64), maps)
    assert logits.shape == (5, num_classes) and torch.isfinite(logits).all()
    logits.square().sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_a_head_does_without_blocks(name: str) -> None:
    """What is compared with "no step 1": f_sub alone through the same head."""
    head = build(name, (), 3, grid=4, width=8)
    head(torch.randn(5, 6, 3, 3, dtype=torch.float64), []).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())


def test_branches_decide_alone_in_training_and_together_after_it() -> None:
    head = build("branches", (4, 8), 3, grid=4, width=8)
    head.dropout.p = 0.0
    for norm in head.norms:
        norm.momentum, norm.training = 0.0, False
    f_sub, maps = torch.randn(1, 6, 3, 3).double(), [torch.randn(1, c, 4, 4).double() for c in (4, 8)]
    head.eval()
    together = head(f_sub, maps)
    sub = head(f_sub, [])
    main = together - sub
    head.training = True
    many = head(f_sub.expand(400, -1, -1, -1), [m.expand(400, -1, -1, -1) for m in maps])
    kinds = [torch.isclose(many, row).all(1).double().mean().item() for row in (2 * main, 2 * sub, together)]
    assert sum(kinds) == 1 and abs(kinds[0] - 0.25) < 0.08 and abs(kinds[1] - 0.25) < 0.08


def conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Plain same-size cross-correlation [B, C, H, W] with [D, C, k, k]."""
    out = [[sum(correlate(x[b, c], w[d, c], mode="constant") for c in range(w.shape[1])) for d in range(len(w))]
           for b in range(len(x))]  # fmt: skip
    return np.array(out)


def batch_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    def column(part: str) -> np.ndarray:
        return w[f"{name}.{part}"][:, None, None]

    return (x - column("running_mean")) / np.sqrt(column("running_var") + 1e-5) * column("weight") + column("bias")


def plain_paper_head(w: dict[str, np.ndarray], f_sub: np.ndarray, maps: list[np.ndarray], grid: int) -> np.ndarray:
    """Section "Architecture", with maps that lie on the grid already and have the head's width already."""
    B, D = f_sub.shape[0], maps[0].shape[1]
    tokens = np.concatenate([batch_norm(m, w, f"bring.{i}.norm").reshape(B, D, -1) for i, m in enumerate(maps)], axis=2)
    f_main = np.einsum("bdt,gt->bdg", tokens, w["tokens.weight"][:, :, 0]) + w["tokens.bias"]
    f_main = f_main.reshape(B, D, grid, grid)
    reduced = conv(f_sub, w["reduce.weight"]) + w["reduce.bias"][:, None, None]
    fused = conv(np.concatenate([f_main, reduced], axis=1), w["fuse.weight"]) + w["fuse.bias"][:, None, None]
    scores = (conv(f_sub, w["scores.weight"]) + w["scores.bias"][:, None, None]).sum(axis=(2, 3))
    x = np.stack([fused[:, 0] * scores[:, k, None, None] + fused[:, 0] for k in range(scores.shape[1])], axis=1)
    for stage in range(3):
        name = f"stages.{stage}"
        x = conv(x, w[f"{name}.conv3.weight"]) + conv(x, w[f"{name}.conv5.weight"])
        x = np.maximum(batch_norm(x, w, f"{name}.norm"), 0)
    hidden = np.maximum(x.reshape(B, -1) @ w["classify.0.weight"].T + w["classify.0.bias"], 0)
    return hidden @ w["classify.3.weight"].T + w["classify.3.bias"]


def test_the_papers_head_equals_a_plain_reading() -> None:
    head = build("paper", (8, 8), num_classes=3, grid=4, width=8).eval()
    f_sub, *maps = (torch.randn(2, c, 4, 4, dtype=torch.float64) for c in (6, 8, 8))
    weights = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    expected = plain_paper_head(weights, f_sub.numpy(), [m.numpy() for m in maps], 4)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(head(f_sub, maps).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_the_papers_sizes() -> None:
    """Three blocks of 512 channels on 16x16, a CNN of 2048: channels 3 -> 64 -> 32 -> 4, then 1024 -> 32 -> 3."""
    head = PaperHead((512, 512, 512), 2048, num_classes=3, grid=16, width=512, dropout=0.5)
    assert head.tokens.weight.shape == (256, 768, 1)
    assert [stage.norm.num_features for stage in head.stages] == [64, 32, 4]  # type: ignore[union-attr]
    linear: Any = [layer for layer in head.classify if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(1024, 32), (32, 3)]


def test_resize_averages_down_and_interpolates_up() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(resize(x, 4), x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5)))
    assert resize(x, 8) is x
    row = torch.tensor([0.0, 4.0], dtype=torch.float64).expand(1, 1, 2, 2)
    torch.testing.assert_close(resize(row, 4)[0, 0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0], dtype=torch.float64))
