"""T2T-ViT against plain readings of its parts."""

import math
from pathlib import Path

import pytest
import torch

from dcube.baselines import t2t
from dcube.baselines.registry import create


def test_performer_kernel_is_exact_attention_in_expectation() -> None:
    """Many random features: within five standard errors of exp(q . k), and close to softmax attention."""
    torch.manual_seed(0)
    q, k, v = (0.3 * torch.randn(2, 9, 16, dtype=torch.float64) for _ in range(3))
    repeats = torch.stack(
        [
            t2t.softmax_kernel(q, directions) @ t2t.softmax_kernel(k, directions).transpose(1, 2)
            for directions in (t2t.orthogonal_features(64, 16).double() for _ in range(400))
        ]
    )
    exact = (q @ k.transpose(1, 2)).exp()
    error = (repeats.mean(0) - exact).abs() / (repeats.std(0) / math.sqrt(len(repeats)))
    assert error.max() < 5 and error.mean() < 1.2
    q, k, directions = 0.5 * q, 0.5 * k, t2t.orthogonal_features(20000, 16).double()
    approximate, attended = t2t.performer_attention(q, k, v, directions), (q @ k.transpose(1, 2)).softmax(-1) @ v
    plain = v.mean(1, keepdim=True)
    assert (approximate - attended).abs().mean() < 0.1 * (plain - attended).abs().mean()


def test_performer_never_builds_the_matrix_but_equals_it() -> None:
    """The same features, with the L x L matrix written out."""
    q, k, v = (torch.randn(2, 7, 8, dtype=torch.float64) for _ in range(3))
    w = t2t.orthogonal_features(4, 8).double()
    matrix = torch.zeros(2, 7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            for m in range(4):
                left = torch.exp(q[:, i] @ w[m] - q[:, i].square().sum(1) / 2)
                right = torch.exp(k[:, j] @ w[m] - k[:, j].square().sum(1) / 2)
                matrix[:, i, j] += left * right / 4
    expected = matrix @ v / (matrix.sum(2, keepdim=True) + 1e-8)
    torch.testing.assert_close(t2t.performer_attention(q, k, v, w), expected)


def test_random_features_are_orthogonal_and_as_long_as_gaussian_ones() -> None:
    w = t2t.orthogonal_features(8, 8)
    gram = w @ w.T
    assert (gram - gram.diagonal().diag()).abs().max() < 1e-4
    lengths = torch.cat([t2t.orthogonal_features(8, 8).square().sum(1) for _ in range(500)])
    assert lengths.mean() == pytest.approx(8, abs=0.35) and lengths.var() == pytest.approx(16, abs=2)


def test_positions() -> None:
    table = t2t.sinusoid_table(5, 6)
    for position in range(5):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[0, position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("size", "tokens"), [(224, 196), (64, 16), (100, 49)])
def test_soft_splits(size: int, tokens: int) -> None:
    assert t2t.TokensToToken(32)(torch.rand(1, 3, size, size)).shape == (1, tokens, 32)


def test_released_weights_are_read_as_they_were_trained(tmp_path: Path) -> None:
    """Their attention is scaled by the width of a head: the first block's, written out. They lie beside others."""
    released, others = t2t.T2TViT(t2t.SIZES[7], 1000, 64), t2t.T2TViT(t2t.SIZES[7], 1000, 64)
    file, several = tmp_path / "t2t.pth.tar", {f"module.{name}": t for name, t in released.state_dict().items()}
    torch.save({"state_dict": others.state_dict(), "state_dict_ema": several}, file)
    system, source = create("t2t_vit_7", 3, 1, 64, weights_file=file)
    assert source == "file t2t.pth.tar"
    x = torch.randn(2, 17, 256)
    q, k, v = released.blocks[0].attn.qkv(x).view(2, 17, 3, 4, 64).permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.transpose(2, 3)) * 64**-0.5).softmax(-1) @ v
    expected = released.blocks[0].attn.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(system.network.blocks[0].attn(x), expected)
    larger, _ = create("t2t_vit_7", 3, 1, 96, weights_file=file)
    assert larger(torch.rand(1, 1, 96, 96)).shape == (1, 3)
    assert torch.equal(larger.network.pos_embed[:, 0], released.pos_embed[:, 0])  # of the class token
