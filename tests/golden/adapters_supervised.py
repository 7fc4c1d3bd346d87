"""What the records of the supervised and open-set systems compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from normscan.methods.base import Batch, Method
from normscan.methods.supervised.boundaries import anomalous_weights, healthy_weights
from normscan.methods.supervised.disentangled import HEALTHY, SEEN, SIMULATED
from normscan.methods.supervised.episodes import Bank, Learner, Set, Watcher, judged, trust
from normscan.methods.supervised.segments import statistics
from normscan.rng import Rng
from normscan.scores.boosted import Boosting, Forest
from tests.golden.adapters_features import centre_of_bright, map_apart, processed
from tests.golden.fill import RULES, fill, images
from tests.golden.records import Check, batch_of


@dataclass
class Waves:
    """Stands for ``Rng``: what is drawn is the rule's."""

    rule: str = "wave"
    shared: bool = True

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return RULES[self.rule](tuple(shape))

    uniform = normal


@contextmanager
def unturned() -> Iterator[None]:
    """Within it images are not turned."""
    with patch("normscan.methods.supervised.common.turned", lambda x, *_, **__: x):
        yield


def labelled(check: Check) -> Batch:
    """The record's images, every other one anomalous, with the waves for draws."""
    batch = batch_of(check)
    batch.label = torch.arange(len(batch)) % 2
    batch.rng = Waves()  # type: ignore[assignment]
    return batch


def loss_of_half(method: Method, check: Check) -> Tensor:
    """The loss of ``phase`` with every other image anomalous, none turned."""
    with unturned():
        terms = method.train().loss(labelled(check), check.phase, "")
    return sum(terms.values()).detach().reshape(1)


def smooth_map(method: Method, check: Check) -> Tensor:
    return processed(method, map_apart(method, check).detach())


def semi_supervised_loss(method: Any, check: Check) -> Tensor:
    centre_of_bright(method, check)
    return loss_of_half(method, check)


# --- disentangled heads

KINDS = (0, 1, 2, 0, 1, 2)


def _beside(method: Any, check: Check) -> Batch:
    """The first five images are references, the others of each kind in turn."""
    batch = labelled(check)
    method.references, batch.image = batch.image[:5], batch.image[5:]
    batch.foreground = batch.foreground[5:]
    kind = torch.tensor(KINDS)
    batch.label = (kind == 1).long()
    method.mixed = lambda given: (given.image, kind)
    return batch


def score_beside_references(method: Any, check: Check) -> Tensor:
    return method.maps(_beside(method, check)).score


def head_losses(method: Any, check: Check) -> Tensor:
    batch = _beside(method, check)
    with unturned():
        return torch.stack(list(method.train().loss(batch, "deviate", "").values())).detach()


# --- quantum circuits


def expectations(method: Any, check: Check, qubits: int = 9, rows: int = 3) -> Tensor:
    """Of angles up to 3 rad, the circuit's own up to 2."""
    grain, circuit = RULES["grain"], method.further.circuit
    with torch.no_grad():
        circuit.angles.copy_(2 * grain(tuple(circuit.angles.shape)))
        return circuit.noisy(3 * grain((rows, qubits)))


def noisy_expectations(method: Any, check: Check) -> Tensor:
    return expectations(method, check, 3, 2)


# --- fully convolutional description


def _collected(method: Any, check: Check) -> Batch:
    """The images, which the normalisation has seen; two lesions are drawn where ``phase`` says so."""
    batch = labelled(check)
    method.normalise(batch.image, collect=True)
    if check.phase == "drawn":
        batch.lesion = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
        batch.lesion[1, :, 8:24, 16:40] = True
        batch.lesion[3, :, 30:50, 4:20] = True
    return batch


def described_map(method: Any, check: Check) -> Tensor:
    return method.maps(_collected(method, check)).map


def described_score(method: Any, check: Check) -> Tensor:
    return method.maps(_collected(method, check)).score


def described_loss(method: Any, check: Check) -> Tensor:
    terms = method.train().loss(_collected(method, check), "describe", "")
    return sum(terms.values()).detach().reshape(1)


# --- outlier exposure


def exposed_loss(method: Any, check: Check) -> Tensor:
    """Two images of classes 3 and 7, four others, none moved."""
    batch = labelled(check)
    batch.part = (torch.arange(len(batch)) > 1).long()
    batch.columns = [{"class": 3}, {"class": 7}, {}, {}, {}, {}]
    with patch("normscan.methods.supervised.exposure.moved_a_little", lambda given: given.image):
        terms = method.train().loss(batch, "expose", "")
    return sum(terms.values()).detach().reshape(1)


# --- trees on segments


def of_segments(method: Method, check: Check) -> Tensor:
    """Statistics of a map in three parts, of which the last is empty, and its maximum."""
    anomaly = RULES["grain"]((20, 24)).numpy() ** 3
    parts = np.arange(480).reshape(20, 24) // 7 % 2
    return torch.from_numpy(statistics(anomaly, parts, 3))


def of_stumps(method: Method, check: Check) -> Tensor:
    """Six log odds of a forest of stumps, grown on all of 60 samples; ``item`` rounds of trees."""
    x = RULES["grain"]((60, 4)).numpy().astype(np.float32)
    y = (x[:, 1] + 0.3 * x[:, 2] > 0.4).astype(int)
    forest, found = Forest(), []
    for rounds, trees in ((1, 1), (4, 3)):
        forest.grow(x, y, 2.5, Boosting(rounds, trees, 1, rows=1.0, columns=1.0), 0)
        found.append(forest(torch.from_numpy(x[[0, 10, 20, 30, 40, 50]])))
    return torch.stack(found)


# --- boundaries of flows


def _likelihoods() -> tuple[Tensor, Tensor]:
    """Healthy log likelihoods and those of every fifth place, which is anomalous."""
    likely = 6 * RULES["grain"]((400,)) - 5
    sick = torch.arange(400) % 5 == 0
    return likely[~sick], likely[sick]


def weights_of_likelihoods(method: Method, check: Check) -> tuple[Tensor, Tensor]:
    healthy, anomalous = _likelihoods()
    return healthy_weights(healthy), anomalous_weights(anomalous)


def guided_terms(method: Any, check: Check) -> Tensor:
    return torch.stack(list(method.guided("level", *_likelihoods()).values()))


def flow_parameters(method: Any, check: Check) -> Tensor:
    return torch.tensor([float(sum(p.numel() for p in method.flows.parameters()))])


# --- prototypes


def _beside_prototypes(method: Any, check: Check) -> Tensor:
    """Two images become prototypes, and two others are returned."""
    image = batch_of(check).image
    with torch.no_grad():
        method.gather(list(method.backbone(image[:2]).values())[:3])
    return image[2:]


def prototypical_map(method: Any, check: Check) -> Tensor:
    batch = batch_of(check)
    batch.image = _beside_prototypes(method, check)
    return method.maps(batch).map


def prototypical_score(method: Any, check: Check) -> Tensor:
    batch = batch_of(check)
    batch.image = _beside_prototypes(method, check)
    return method.maps(batch).score


def prototypical_terms(method: Any, check: Check) -> Tensor:
    image = _beside_prototypes(method, check)
    lesion = torch.zeros(2, 1, 128, 128, dtype=torch.bool)
    lesion[1, :, 30:60, 50:90] = True
    terms = method.train().terms(method.logits(image), lesion)
    return torch.stack(list(terms.values())).detach()


# --- heterogeneous sets

PAIRS, SAMPLES = 6, 12


class Later(Set):
    """A set whose first batch is passed over: of a first pass of two the release uses the second."""

    def batches(self, size: int, rng: Rng) -> Iterator[Tensor]:
        return islice(super().batches(size, rng), 1, None)


@contextmanager
def in_order() -> Iterator[None]:
    """Within it samples aren't shuffled, and the references are the first five."""
    first = patch.object(Bank, "references", lambda self, *_: [s[:5].mean(0) for s in self.scales])
    order = patch(
        "normscan.methods.supervised.episodes._shuffled", lambda count, _: torch.arange(count)
    )
    with first, order:
        yield


def set_of(kind: type[Set], healthy: int, changed: int, stride: int, sick: int) -> Set:
    """Four samples of each kind of a bank with eight healthy, eight changed and six known ones."""
    i = torch.arange(4)
    rows = [(healthy + i) % 8, 8 + (changed + stride * i) % 8, 16 + (sick + i) % 6]
    return kind(torch.cat(rows), torch.tensor([HEALTHY, SIMULATED, SEEN]).repeat_interleave(4))


def sets_for(pair: int) -> tuple[Set, Set]:
    return set_of(Later, pair, pair, 2, pair), set_of(Set, pair + 3, pair + 5, 1, pair + 2)


def bank_of(width: int) -> Bank:
    """Stored features at 6 and 3 places along an axis."""
    scales = [images(22, width, side, side, rule="grain") for side in (6, 3)]
    return Bank([[s[a:b] for s in scales] for a, b in ((0, 8), (8, 16), (16, 22))])


def learner_of(method: Any) -> Learner:
    method.heads.double()
    rhythm = replace(method.rhythm, updates=2, batch_size=6)
    return Learner(method.heads, bank_of(512), rhythm, Waves("grain"))  # type: ignore[arg-type]


def carried_over(method: Any, check: Check) -> tuple[Tensor, Tensor]:
    """Norms of the gradient of two pairs' mean, and scores of each set by each pair's heads.

    The norms are those of weights and biases in turn, the residual head's filter last but one.
    """
    learner = learner_of(method)
    weights = {n: w.detach().clone().requires_grad_() for n, w in method.heads.named_parameters()}
    pairs = [sets_for(pair) for pair in range(2)]
    with in_order(), torch.enable_grad():
        found = [learner.adapted(weights, *pair) for pair in pairs]
        told = [[judged(learner, moved, query) for moved, _ in found] for _, query in pairs]
    slopes = zip(*(slopes for _, slopes in found), strict=True)
    norms = {n: torch.stack(s).mean(0).norm() for n, s in zip(weights, slopes, strict=True)}
    last = [f"residual.{n}" for n in ("scale", "shift")]  # as the release has them
    scores = torch.stack([torch.stack(columns, 1) for columns in told])
    order = [n for n in norms if n not in last] + last
    return torch.stack([norms[n] for n in order]), scores.flatten()[::5]


def foretold(method: Any, check: Check) -> tuple[Tensor, Tensor]:
    """After eight rounds of given scores: foretold ones, and how much each pair counts."""
    watcher = Watcher(PAIRS, Waves("grain"))  # type: ignore[arg-type]
    watcher.network.double().dropout = 0.0
    fill(watcher.network, "grain")
    told = 3 * RULES["grain"]((9, PAIRS, PAIRS, SAMPLES))
    kinds = [sets_for(0)[1].kind] * PAIRS
    for scores in told[:8]:
        watcher.learn(list(scores.mT))
    with torch.no_grad():
        reached = torch.stack(watcher.foretold())
    return reached.flatten()[::61], trust(list(reached), kinds)
