"""The two ways of attention agree, and which of them is taken."""

import pytest
import torch

from dcube.config import DiffusionConfig
from dcube.diffusion import attention
from dcube.diffusion.attention import attend
from dcube.diffusion.build import build_denoiser
from dcube.training.fastest import set_attention
from tiny import randomise


def plain(qkv: torch.Tensor, heads: int) -> torch.Tensor:
    """Vaswani et al. 2017, eq. 1, head by head."""
    q, k, v = (part.unflatten(2, (heads, -1)) for part in qkv.chunk(3, dim=2))
    weights = torch.einsum("blhd,bmhd->bhlm", q, k) / (qkv.shape[2] / 3 / heads) ** 0.5
    return torch.einsum("bhlm,bmhd->blhd", weights.softmax(-1), v).flatten(2)


@pytest.mark.parametrize("kind", ["sdpa", "explicit", "auto"])
@pytest.mark.parametrize(("B", "L", "D", "heads"), [(2, 7, 12, 3), (1, 33, 16, 1)])
def test_value_and_gradient_are_the_plain_ones(kind: str, B: int, L: int, D: int, heads: int) -> None:
    qkv = torch.randn(B, L, 3 * D, dtype=torch.float64, requires_grad=True)
    upwards = torch.randn(B, L, D, dtype=torch.float64)
    ours, expected = attend(qkv, heads, kind), plain(qkv, heads)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out, qkv, upwards, retain_graph=True)[0] for out in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["uvit", "unet"])
def test_a_whole_network_gives_the_same_in_both_ways(backbone: str) -> None:
    tree = {
        "backbone": backbone, "image_size": 16, "uvit": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
        "unet": {"widths": (8, 16), "groups": 4, "attention": (1, 2)},
    }  # fmt: skip
    model = build_denoiser(DiffusionConfig.model_validate(tree), 1, 3).double()
    randomise(model)
    x, t, y, outputs = torch.randn(2, 1, 16, 16).double(), torch.tensor([3, 500]), torch.tensor([0, 2]), []
    for kind in ("sdpa", "explicit"):
        set_attention(model, kind)
        outputs.append(model(x, t, y)[0])
    assert not torch.equal(*outputs)  # the setting reached the blocks
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


def test_auto_is_explicit_in_bf16_on_a_cpu_and_for_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(attention, "explicit_attention", lambda q, k, v: calls.append(q.dtype) or v)
    qkv = torch.randn(1, 5, 12)
    attend(qkv, 2), attend(qkv.double(), 2), attend(qkv.bfloat16(), 2, "sdpa")
    assert calls == []
    attend(qkv.bfloat16(), 2), attend(qkv, 2, "explicit")
    assert calls == [torch.bfloat16, torch.float32]
    monkeypatch.setattr(attention, "EXPLICIT_TOKENS", 4)
    attend(qkv.bfloat16(), 2)
    assert len(calls) == 2


def test_bf16_stays_near_fp32() -> None:
    qkv = torch.randn(2, 40, 96)
    exact = plain(qkv.double(), 4)
    for kind in ("sdpa", "explicit"):
        error = (attend(qkv.bfloat16(), 4, kind).double() - exact).norm() / exact.norm()
        assert error < 0.01  # bf16 has 8 bits
