"""EMA against the closed form."""

import torch
from torch import nn

from dcube.training.ema import EMA, ema_decay


def test_weights_follow_the_closed_form() -> None:
    """e_n = prod(d) e_0 + sum_k (1 - d_k) prod_{j > k} d_j w_k."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    ema, history = EMA(model, 0.9), [model.weight.detach().clone()]
    for step in range(200):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, dtype=torch.float64))
        history.append(model.weight.detach().clone())
        ema.update(model, step)
    decays = [min(0.9, (1 + k) / (10 + k)) for k in range(200)]
    expected, factor = torch.zeros(2, 3, dtype=torch.float64), 1.0
    for k in reversed(range(200)):
        expected += (1 - decays[k]) * factor * history[k + 1]
        factor *= decays[k]
    expected += factor * history[0]
    torch.testing.assert_close(ema.model.weight, expected, rtol=0, atol=1e-12)


def test_decay_is_warmed_up() -> None:
    assert [ema_decay(0.999, k) for k in (0, 10)] == [0.1, 11 / 20]
    assert ema_decay(0.999, 100_000) == 0.999


def test_buffers_are_copied_and_nothing_is_trained() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ema = EMA(model, 0.99)
    for step in range(3):
        model(torch.randn(4, 1, 5, 5) + 3)
        ema.update(model, step)
    for mine, theirs in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs) and mine is not theirs
    assert ema.model[1].num_batches_tracked == 3
    assert not ema.model.training and model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_what_is_not_trained_is_shared() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    ema = EMA(model, 0.99)
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update(model, 100)
    assert ema.model[1].weight is model[1].weight and ema.model[0].weight is not model[0].weight
    assert not torch.equal(ema.model[0].weight, model[0].weight)
