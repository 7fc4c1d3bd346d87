import math

import pytest
import torch
from tests.support.batches import batch
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.flows.dense import fastflow
from normscan.methods.flows.fibres import cflow, staged_cosine
from normscan.methods.flows.restoring import ae_flow, enlarging
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")

SMALL = {"backbone": "resnet18.tv_in1k", "weights": "random", "size": 32}


def test_the_rate_of_cflow():
    """Its release's rates by stage, the largest 2e-4."""
    steps = 2500
    begun = [2e-4 * staged_cosine(s, steps) for s in (0, 100, 199)]
    least, largest = 2e-7, 2e-4
    cosine = [
        least + (largest - least) * (1 + math.cos(math.pi * epoch / 25)) / 2 for epoch in range(25)
    ]
    rise = [2e-5 + share * (cosine[2] - 2e-5) for share in (0, 0.5, 0.995)]
    assert begun == pytest.approx(rise)
    for epoch in range(2, 25):
        for s in (100 * epoch, 100 * epoch + 99):
            assert 2e-4 * staged_cosine(s, steps) == pytest.approx(cosine[epoch])


def test_cflow_knows_the_largest_likelihood_and_where_a_vector_lies():
    method = cflow(**SMALL, taps=("layer1", "layer2"), blocks=1, places=8).eval()
    some = batch(3)
    method.fit([Batch(some.image[:2], some.foreground[:2], Rng(0), torch.zeros(2)), some])
    likely = method.log_likelihoods(some.image)
    assert [tuple(level.shape) for level in likely] == [(3, 1, 8, 8), (3, 1, 4, 4)]
    torch.testing.assert_close(method.best, torch.stack([level.amax() for level in likely]))
    assert method.maps(some).map.min() >= 0
    (vectors, places, grid), _ = method.levels(some.image)
    features = method.backbone(some.image)["layer1"]
    at = 1 * 64 + 3 * 8 + 5  # the second image, row 3, column 5
    torch.testing.assert_close(vectors[at], features[1, :, 3, 5])
    assert grid == (8, 8) and torch.equal(places[at], places[at - 64])
    assert not torch.equal(places[at], places[at + 1])


def test_fastflow_maps_what_its_flows_lead_far_from_zero():
    method = fastflow(**SMALL, taps=("layer1", "layer2"), flow_steps=2).eval()
    some = batch(2)
    by_hand = []
    for features, norm, flow in zip(
        method.backbone(some.image).values(), method.norms, method.flows, strict=True
    ):
        with torch.no_grad():
            z = flow(F.layer_norm(features, norm.normalized_shape, norm.weight, norm.bias)).z
        density = -torch.exp(-z.square().mean(1, keepdim=True) / 2)
        by_hand.append(F.interpolate(density, (32, 32), mode="bilinear"))
    torch.testing.assert_close(method.maps(some).map, sum(by_hand) / 2)


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_the_decoder_of_ae_flow_undoes_the_stride(stride):
    image = enlarging(32, stride, 3).eval()(torch.randn(2, 32, 2, 3))
    assert image.shape == (2, 3, 2 * stride, 3 * stride) and image.abs().max() <= 1


def test_what_ae_flow_cannot_restore_from_is_refused():
    with pytest.raises(ArgumentError, match="2, 4, 8 or 16"):
        enlarging(32, 32, 1)
    with pytest.raises(ArgumentError, match="one stage"):
        ae_flow(**SMALL, taps=("layer1", "layer2"))
