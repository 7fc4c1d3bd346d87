"""The two modules of a score with a confidence, and where the score looks."""

from __future__ import annotations

import torch

from normscan.methods.base import Batch
from normscan.methods.features.confident import scored
from normscan.registry import card
from normscan.rng import Rng


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("caad").create(**card("caad").arguments("tiny"))


def batch(n: int = 4):
    image = torch.rand(n, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    ones = torch.ones(n, 1, 64, 64, dtype=torch.bool)
    return Batch(image, ones, Rng(0), torch.full((n,), 0.5), label=torch.arange(n) % 2)


def test_healthy_scores_are_drawn_to_0_and_anomalous_ones_over_the_margin():
    method = build().eval()
    given = batch()
    score = scored(method.anomaly, method.features(given.image)).detach()
    terms = method.loss(given, "score", "score")
    known = [float(s.abs()) / 4 for s in score[::2]]
    assert abs(float(terms["healthy"]) - sum(known)) < 1e-6
    known = [max(0.0, 1.0 - float(s)) / 4 for s in score[1::2]]
    assert abs(float(terms["anomalous"]) - sum(known)) < 1e-6


def test_the_confidence_teaches_nothing_else():
    method = build().train()
    method.loss(batch(), "confidence", "confidence")["confidence"].backward()
    taught = {name.partition(".")[0] for name, p in method.named_parameters() if p.grad is not None}
    assert taught == {"confidence"}


def test_the_map_is_grad_cam():
    method = build().eval()
    image = batch(1).image
    seen: list[torch.Tensor] = []
    hook = method.anomaly["features"].register_forward_hook(lambda m, i, o: seen.append(o))
    score = scored(method.anomaly, method.features(image))
    hook.remove()
    (slope,) = torch.autograd.grad(score.sum(), seen[0])
    known = (slope.mean((2, 3), keepdim=True) * seen[0]).sum(1, keepdim=True).clamp_min(0)
    torch.testing.assert_close(method.maps(batch(1)).map, known.detach())
