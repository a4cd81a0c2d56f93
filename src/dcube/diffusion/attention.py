"""Attention in two ways that agree: the fused kernel, and two matrix products around a softmax.

A module with attention has an attribute `attention_kind`, "auto" as it is built; a training sets it on the model
it trains, as training/fastest.py found.
"""

import torch
import torch.nn.functional as F

EXPLICIT_TOKENS = 1024  # above, the weights of the explicit way, L^2 for each head, take too much memory


def attend(qkv: torch.Tensor, heads: int, kind: str = "auto") -> torch.Tensor:
    """Multi-head self-attention [B, L, D] of queries, keys and values [B, L, 3 D].

    kind: "sdpa" (torch's fused kernel), "explicit" (at the price of the weights [B, heads, L, L] in memory), or "auto":
    explicit in bf16 on a CPU, whose fused kernel is slow in bf16 as of torch 2.15, else sdpa.
    """
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(B, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)  # [B, heads, L, d]
    slow_kernel = q.dtype == torch.bfloat16 and q.device.type == "cpu" and L <= EXPLICIT_TOKENS
    explicit = kind == "explicit" or (kind == "auto" and slow_kernel)
    x = explicit_attention(q, k, v) if explicit else F.scaled_dot_product_attention(q, k, v)
    return x.transpose(1, 2).reshape(B, L, D)


def explicit_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1). q, k, v: [B, heads, L, d]; returns the same shape.

    The scale is a factor of the first product, which saves a pass over [B, heads, L, L].
    """
    B, heads, L, d = q.shape
    q, k, v = (z.reshape(B * heads, L, d) for z in (q, k, v))
    weights = torch.baddbmm(q.new_zeros(()), q, k.transpose(1, 2), beta=0, alpha=d**-0.5).softmax(-1)  # [B h, L, L]
    return torch.bmm(weights, v).view(B, heads, L, d)
