"""How ``ahl`` makes pairs of sets of stored features, and learns from what carries over between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normscan.methods.supervised.common import deviates
from normscan.methods.supervised.disentangled import HEALTHY, SEEN, SIMULATED, wanted
from normscan.networks.foretelling import Foreteller
from normscan.rng import Rng

Weights = dict[str, Tensor]
WINDOW = 5  # rounds of scores that the next ones are foretold from
INNER = 2e-4


@dataclass(frozen=True)
class Rhythm:
    """How heads learn; see ``ahl`` for the arguments.

    Attributes:
        size: of the images.
    """

    size: int
    clusters: int
    rounds: int
    passes: int
    updates: int
    batch_size: int
    margin: float
    references: int


class Bank:
    """Stored features.

    Args:
        groups: healthy images, one group for each change of them in the same order, and known
            anomalies; each a tensor (n, width, h, w) for each scale.
    """

    def __init__(self, groups: list[list[Tensor]]) -> None:
        self.healthy, self.changes = len(groups[0][0]), len(groups) - 2
        self.anomalous = len(groups[-1][0])
        self.scales = [torch.cat(scale) for scale in zip(*groups, strict=True)]

    def rows(self, rows: Tensor) -> list[Tensor]:
        """Features of some, at each scale."""
        return [scale[rows.to(scale.device)] for scale in self.scales]

    def references(self, most: int, rng: Rng) -> list[Tensor]:
        """The mean features of so many healthy images at each scale."""
        return [f.mean(0) for f in self.rows(_shuffled(self.healthy, rng)[:most])]


@dataclass(frozen=True)
class Set:
    """Samples by their rows in the bank, and of which kind they are."""

    rows: Tensor
    kind: Tensor

    def batches(self, size: int, rng: Rng) -> Iterator[Tensor]:
        """Places of batches with equal parts of each kind there is, in turn in random orders."""
        there = [k for k in (HEALTHY, SIMULATED, SEEN) if (self.kind == k).any()]
        share = [size // len(there)] * (len(there) - 1)
        share.append(size - sum(share))
        flows = [_endless((self.kind == k).nonzero()[:, 0], rng) for k in there]
        while True:
            parts = [list(itertools.islice(f, n)) for f, n in zip(flows, share, strict=True)]
            yield torch.tensor([place for part in parts for place in part])


def summed(scores: dict[str, Tensor]) -> Tensor:
    """The image score (B,) of those of the heads: the first tells healthy images."""
    return sum(scores.values(), -2 * scores["holistic"])


def _shuffled(count: int, rng: Rng) -> Tensor:
    return rng.uniform((count,)).argsort()


def _endless(places: Tensor, rng: Rng) -> Iterator[int]:
    while True:
        yield from places[_shuffled(len(places), rng)].tolist()


def clustered(points: Tensor, clusters: int, rng: Rng) -> list[Tensor]:
    """Rows of points (N, D) that belong together, in sets of more than two; two halves, if need be."""
    from sklearn.cluster import KMeans

    found = KMeans(min(clusters, len(points)), n_init=1, random_state=42).fit(points.numpy())
    labels = torch.from_numpy(found.labels_)
    groups = [(labels == c).nonzero()[:, 0] for c in range(clusters)]
    large = [g for g in groups if len(g) > 2]
    if len(large) > 1:
        return large
    order = _shuffled(len(points), rng)
    return [order[: (len(order) + 1) // 2], order[len(order) // 2 :]]


def episodes(bank: Bank, rhythm: Rhythm, rng: Rng) -> list[tuple[Set, Set]]:
    """For each ordered pair of clusters a set to learn from and one to be judged on."""
    points = bank.scales[0][: bank.healthy].flatten(1).float().cpu()
    groups = clustered(points, rhythm.clusters, rng)
    first = bank.healthy * (1 + bank.changes)  # row of the first known anomaly

    def made(healthy: Tensor, sick: Tensor, change: int) -> Set:
        changed = rng.uniform((len(healthy),)) < 0.5
        changed[0] &= not changed.all()  # one stays healthy
        rows = torch.where(changed, healthy + change * bank.healthy, healthy)
        kind = torch.where(changed, SIMULATED, HEALTHY)
        seen = torch.full((len(sick),), SEEN)
        return Set(torch.cat([rows, first + sick]), torch.cat([kind, seen]))

    result = []
    pairs = list(itertools.combinations(groups, 2))
    for own, other in [*pairs, *((b, a) for a, b in pairs)]:
        change = int(rng.integers(1, 1 + bank.changes, (1,)))
        sick = _shuffled(bank.anomalous, rng)
        half = len(sick) // 2
        known, left = (
            (sick[:half], torch.cat([sick[:2][:half], sick[half:]])) if half else (sick,) * 2
        )
        result.append((made(own, known, change), made(other, left, change)))
    return result


class Learner:
    """The loss of heads on stored features.

    Args:
        heads: whose weights are given with each call.
        bank: the features.
        rhythm: how they learn.
        rng: of all that is drawn.
    """

    def __init__(self, heads: nn.Module, bank: Bank, rhythm: Rhythm, rng: Rng) -> None:
        self.heads, self.bank, self.rhythm, self.rng = heads, bank, rhythm, rng

    def scores(self, weights: Weights, rows: Tensor, kind: Tensor) -> dict[str, Tensor]:
        """Scores by each head of rows of the bank, beside references of their own."""
        healthy = self.bank.references(self.rhythm.references, self.rng)
        given = (self.bank.rows(rows), healthy, kind.to(healthy[0].device))
        result: dict[str, Tensor] = functional_call(self.heads, weights, given)
        return result

    def loss(self, weights: Weights, samples: Set, places: Tensor) -> Tensor:
        """The sum of the heads' deviation losses on some samples."""
        kind = samples.kind[places]
        scores = self.scores(weights, samples.rows[places], kind)
        truth = wanted(kind.to(next(iter(scores.values())).device))
        margin = self.rhythm.margin
        losses = [deviates(s, truth[name], self.rng, margin) for name, s in scores.items()]
        return torch.stack(losses).sum()

    def step(self, weights: Weights, samples: Set, places: Tensor, keep: bool = False) -> Weights:
        """Weights after a step on some samples; ``keep`` for one that a gradient can go back through."""
        loss = self.loss(weights, samples, places)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=keep)
        pairs = zip(weights.items(), slopes, strict=True)
        return {name: w - INNER * slope for (name, w), slope in pairs}

    def adapted(self, weights: Weights, support: Set, query: Set) -> tuple[Weights, list[Tensor]]:
        """Weights that have learnt from a set, and the gradient of their loss on the other one.

        It goes back to the weights before: through the first step, and past the others.
        """
        flow = support.batches(self.rhythm.batch_size, self.rng)
        once = self.step(weights, support, next(flow), keep=True)
        moved = {n: w.detach().requires_grad_() for n, w in once.items()}
        for _ in range(self.rhythm.passes * self.rhythm.updates):
            moved = self.step(moved, support, next(flow))
            moved = {n: w.detach().requires_grad_() for n, w in moved.items()}
        judged = query.batches(self.rhythm.batch_size, self.rng)
        batches = itertools.islice(judged, self.rhythm.updates)
        loss = torch.stack([self.loss(moved, query, places) for places in batches]).sum()
        slopes = torch.autograd.grad(loss, list(moved.values()))
        back = torch.autograd.grad(list(once.values()), list(weights.values()), slopes)
        return moved, list(back)


def trust(foretold: list[Tensor], kinds: list[Tensor]) -> Tensor:
    """How much each pair counts, by the scores that its heads are foretold to give, summing to 1.

    Args:
        foretold: for each judged set the scores (n, pairs) by the heads of each pair.
        kinds: (n,) of each set.
    """
    wrong = torch.zeros(foretold[0].shape[1])
    for kind, weight in ((HEALTHY, 0.5), (SIMULATED, 0.5), (SEEN, 1.0)):
        chosen = [f[k == kind] for f, k in zip(foretold, kinds, strict=True)]
        means = [(c - float(kind != HEALTHY)).square().mean(0) for c in chosen if len(c)]
        if means:
            # Divided by the number of samples a second time, as in the release.
            wrong = wrong + weight * torch.stack(means).sum(0) / sum(map(len, chosen))
    return (-wrong).softmax(0)


class Watcher:
    """Scores of the rounds so far, and the network that foretells the next ones.

    Args:
        pairs: of sets.
        rng: of all that is drawn.
    """

    def __init__(self, pairs: int, rng: Rng) -> None:
        self.network, self.rng = Foreteller(pairs), rng
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-3, weight_decay=1e-3)
        self.met: list[list[Tensor]] = []

    def factors(self, kinds: list[Tensor]) -> Tensor:
        """What the loss of each pair is multiplied by in the round to come."""
        pairs = self.network.width
        if len(self.met) <= WINDOW + 1:
            return torch.full((pairs,), 1 / pairs)
        return 0.5 + 0.5 * trust(self.foretold(), kinds)

    @torch.no_grad()
    def foretold(self) -> list[Tensor]:
        """For each set the scores (n, pairs) of the round to come."""
        return [self.network(before, self.rng) for before in self._before()]

    def _before(self) -> list[Tensor]:
        """For each set the scores (n, WINDOW, pairs) of the last rounds."""
        return [torch.stack(scores, 1) for scores in zip(*self.met[-WINDOW:], strict=True)]

    def learn(self, scores: list[Tensor]) -> None:
        """Learn from a round's scores (n, pairs) of each set."""
        if len(self.met) >= WINDOW:
            for before, now in zip(self._before(), scores, strict=True):
                self.optimizer.zero_grad()
                (self.network(before, self.rng) - now).square().mean().backward()
                self.optimizer.step()
        self.met.append(scores)


def learnt_heads(
    heads: nn.Module, bank: Bank, pairs: list[tuple[Set, Set]], rhythm: Rhythm, rng: Rng
) -> Weights:
    """The weights of heads after all rounds."""
    weights = {n: w.detach().clone().requires_grad_() for n, w in heads.named_parameters()}
    learner, watcher = Learner(heads, bank, rhythm, rng), Watcher(len(pairs), rng)
    adam = torch.optim.Adam(weights.values(), lr=2e-3, weight_decay=1e-4)
    # A tenth after 9, 19 and so on: the release counts a first epoch without an update.
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: 0.1 ** ((n + 1) // 10))
    kinds = [query.kind for _, query in pairs]
    for _ in range(rhythm.rounds):
        adam.zero_grad()
        told = []
        for factor, (support, query) in zip(watcher.factors(kinds).tolist(), pairs, strict=True):
            moved, slopes = learner.adapted(weights, support, query)
            for weight, slope in zip(weights.values(), slopes, strict=True):
                weight.grad = factor * slope + (0 if weight.grad is None else weight.grad)
            told.append([judged(learner, moved, other) for _, other in pairs])
        watcher.learn([torch.stack(columns, 1) for columns in zip(*told, strict=True)])
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        adam.step()
        rate.step()
    return {n: w.detach() for n, w in weights.items()}


@torch.no_grad()
def judged(learner: Learner, weights: Weights, samples: Set) -> Tensor:
    """Image scores (n,) of a set, on the CPU."""
    every = torch.full((len(samples.rows),), -1)
    scores = learner.scores(weights, samples.rows, every)
    return summed(scores).float().cpu()
