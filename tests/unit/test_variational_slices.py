"""Codes of slices that know their neighbours."""

from __future__ import annotations

import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng


def method(**changes):
    torch.manual_seed(0)
    small = {"size": 16, "width": 4, "latent": 4, "context": 2, **changes}
    return card("inter_slice").create(**card("inter_slice").arguments("tiny", **small)).eval()


def batch(n=2, context=2):
    around = torch.rand(n, 1, 2 * context + 1, 16, 16, generator=torch.Generator().manual_seed(0))
    foreground = torch.ones(n, 1, 16, 16) > 0
    return Batch(
        around[:, :, context], foreground, Rng(list(range(n))), torch.zeros(n), context=around
    )


@pytest.mark.parametrize("between", ["gru", "transformer", "none"])
def test_a_code_knows_its_neighbours_unless_they_are_left_out(between):
    m, b = method(between=between), batch()
    before = m.maps(b).map
    b.context = b.context.clone()
    b.context[0, :, 4] = 0
    after = m.maps(b).map
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0], after[0]) == (between == "none")


def test_slices_by_themselves_are_a_plain_variational_autoencoder():
    m, b = method(between="none"), batch()
    mean, _ = m.network.network.encode(b.image)
    torch.testing.assert_close(m.maps(b).reconstruction, m.network.network.decode(mean).detach())


@pytest.mark.parametrize("between", ["gru", "transformer"])
def test_bound_of_a_sequence_is_that_of_distributions(between):
    m, b = method(between=between, kl_weight=0.3), batch()
    terms = m.loss(b, "", "")
    mean, log_std = m.network.encode(b.context)
    assert mean.shape == (2, 5, 4)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms["kl"], 0.3 * kl.sum(2).mean())
    code = mean + log_std.exp() * batch().rng.normal(mean.shape)
    slices = [m.network.network.decode(code[:, i]) for i in range(5)]
    density = torch.distributions.Laplace(torch.stack(slices, 2), 1.0)
    surprise = -density.log_prob(b.context) - torch.log(torch.tensor(2.0))  # less its constant
    torch.testing.assert_close(terms["l1"], surprise.sum((1, 3, 4)).mean())


def test_a_transformer_knows_the_order_of_slices():
    m, b = method(), batch()
    with torch.no_grad():
        m.network.places.mul_(50)
        forward = m.encode(b.context)[0][:, 2]
        backward = m.encode(b.context.flip(2))[0][:, 2]
    assert not torch.allclose(forward, backward, atol=1e-4)


def test_heads_are_refused():
    with pytest.raises(ArgumentError, match="doesn't divide"):
        method(heads=3)
