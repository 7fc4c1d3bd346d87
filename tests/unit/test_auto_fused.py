"""Several methods as one: who judges, what is weighed, and that fusion is the sum that it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from normscan.auto import kinds
from normscan.auto.fused import Fused
from normscan.auto.member import Member
from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.registry import card
from normscan.rng import Rng

SIDE = 24


def batch(n=12, size=SIDE, seed=0):
    """Discs with noise, each of a subject of its own."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    inside = (axis[:, None] ** 2 + axis**2 < 0.8).expand(n, 1, size, size)
    image = inside * (0.6 + 0.05 * torch.rand(n, 1, size, size, generator=generator))
    numbers = torch.arange(n)
    return Batch(image, inside, Rng(0), torch.full((n,), 0.5), index=numbers, subject=numbers)


class Distance(Method):
    """How far a pixel is from the mean grey value of all healthy images."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.seen: list[list[int]] = []

    def fit(self, batches):
        batches = list(batches)
        self.seen.append([i for b in batches for i in b.subject.tolist()])
        self.mean = torch.cat([b.image[b.foreground] for b in batches]).mean()

    def maps(self, batch):
        return Maps((batch.image - self.mean).abs() * batch.foreground)


class Blind(Method):
    """A map that doesn't depend on what is in the image, but on its noise."""

    def maps(self, batch):
        return Maps((1e4 * batch.image[:, :, :2, :2].sum((1, 2, 3)) % 1).reshape(-1, 1, 1, 1)
                    + 0.1 * torch.sin(1e3 * batch.image[:, :, 12:13, 12:13]) * batch.foreground)  # fmt: skip


class Learning(Distance):
    """Notes which subjects its loss sees."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.taught: list[int] = []

    def phases(self):
        return [Phase("learn", [Player("all", [self], lambda p: torch.optim.SGD(p, 0.1))], steps=8)]

    def loss(self, batch, phase, player):
        assert (phase, player) == ("learn", "all")
        self.taught += batch.subject.tolist()
        return {"square": (self.weight - 1).square()}


def member(method, name="padim:laptop", side=SIDE):
    method.card = card("padim")
    return Member(name, method, side, (), "foreground_mean")


def fused(*methods, every=3, wanted=60, effort=1.0):
    made = Fused([member(m) for m in methods], every, effort, 0, wanted)
    return made.eval()


def test_who_finds_what_is_planted_gets_the_weight():
    both = fused(Distance(), Blind())
    both.fit([batch()])
    first, second = both.learnt()["members"]
    assert first["weight"] > 0.9 > second["weight"]
    assert first["auroc"] > 0.6
    assert first["why"] == "the best" and "next to nothing" in second["why"]
    judged = both.learnt()["judged_by"]
    assert (judged["subjects"], judged["images"]) == (4, 4) and judged["planted"] >= 40
    json.dumps(both.learnt(), allow_nan=False)


def test_who_judges_trains_nothing():
    method = Learning()
    made = fused(method, effort=0.5)
    (phase,) = made.phases()
    assert (phase.name, phase.steps, phase.validate_every) == ("0/learn", 4, 0)
    made.loss(batch(), phase.name, "all")
    assert set(method.taught) == {i for i in range(12) if i % 3 != 2}
    judges = batch(3)
    judges.subject = torch.tensor([2, 5, 8])
    assert made.loss(judges, phase.name, "all")["square"] == 0
    made.fit([batch()])
    assert made.facts[0] == 4


def test_the_trial_does_not_see_the_judges():
    seen = []

    class Told(Distance):
        def fit(self, batches):
            super().fit(batches)
            seen.append(self.seen[-1])

    fused(Told()).fit([batch()])
    assert seen == [[i for i in range(12) if i % 3 != 2], list(range(12))]


def test_maps_and_scores_are_weighted_means():
    both = fused(Distance(), Blind())
    both.fit([batch()])
    for one, weight in zip(both, (0.75, 0.25), strict=True):
        one.weight.fill_(weight)
    new = batch(3, seed=5)
    found, expected, score = both.maps(new), 0, 0
    for one in both:
        surprise, scores = one.judge(one.looks(new))
        expected = expected + float(one.weight) * surprise
        score = score + float(one.weight) * np.array(scores)
    np.testing.assert_allclose(found.map[:, 0].numpy(), np.maximum(expected, 0), rtol=1e-5)
    np.testing.assert_allclose(found.score.numpy(), score)


def test_a_member_that_was_dropped_is_not_asked():
    both = fused(Distance(), Blind())
    both.fit([batch()])
    first, second = both
    first.weight.fill_(1)
    second.weight.fill_(0)
    second.method.maps = None
    assert torch.isfinite(both.maps(batch(2)).score).all()


def test_one_judge_is_none():
    """Three subjects, of which one would judge: all weigh the same and nothing is made up."""
    both = fused(Distance(), Blind())
    both.fit([batch(3)])
    told = both.learnt()
    assert [m["weight"] for m in told["members"]] == [0.5, 0.5]
    assert all(m["auroc"] is None for m in told["members"])
    assert told["members"][0]["why"].startswith("nobody judged")
    assert told["said"] == "nobody could judge: padim:laptop 50%, padim:laptop 50%"
    assert torch.isfinite(both.maps(batch(2)).score).all()


def test_a_loaded_one_gives_the_same():
    both, again = fused(Distance(), Blind()), fused(Distance(), Blind())
    both.fit([batch()])
    again.load_weights(both.state_dict())
    new = batch(3, seed=9)
    assert torch.equal(both.maps(new).map, again.maps(new).map)
    assert torch.equal(both.maps(new).score, again.maps(new).score)
    assert both.learnt() == again.learnt()


def test_an_image_does_not_depend_on_its_batch_mates():
    both, new = fused(Distance(), Blind()), batch(4, seed=3)
    both.fit([batch()])
    alone = batch(4, seed=3)
    alone.image, alone.foreground = alone.image[:1], alone.foreground[:1]
    assert both.maps(alone).score[0] == both.maps(new).score[0]


# ----------------------------------------------------------------------- kinds


@pytest.fixture(scope="module")
def twins():
    healthy = batch(10, 32)
    bent = healthy.image * (1 + 0.5 * torch.sin(torch.arange(32) / 3.0))
    return bent, healthy.foreground, kinds.planted(bent, healthy.foreground, 0, 60)


def test_every_kind_is_planted_and_changes_its_host_as_much_as_was_drawn(twins):
    images, inside, found = twins
    assert np.bincount(found.kinds, minlength=len(kinds.KINDS)).min() >= 5
    low, high = kinds.CHANGES
    for number, kind in enumerate(kinds.KINDS):
        sizes = []
        mine = found.kinds == number
        for twin, host in zip(found.images[mine], found.hosts[mine], strict=True):
            change = twin - images[host]
            touched = change.abs() > 1e-6
            assert 0 < touched.sum() < 0.5 * touched.numel()
            spread = images[host][inside[host]].std(correction=0)
            sizes.append(float(change[touched].square().mean().sqrt() / spread))
        assert np.median(sizes) >= 0.5 * low, kind.name
        assert max(sizes) <= 2 * high, kind.name


def test_planting_is_drawn_from_the_seed_alone(twins):
    images, inside, _ = twins
    found = kinds.planted(images[:3], inside[:3], 0, 12)
    again = kinds.planted(images[:3], inside[:3], 0, 12)
    assert torch.equal(found.images, again.images)
    other = kinds.planted(images[:3], inside[:3], 1, 12)
    assert not torch.equal(found.images[:5], other.images[:5])


def test_few_images_get_more_each(twins):
    images, inside, _ = twins
    found = kinds.planted(images[:2], inside[:2], 0, 60)
    assert np.bincount(found.hosts).max() <= kinds.EACH * len(kinds.KINDS)
    assert len(found.kinds) > 50


def test_an_image_without_anatomy_has_nothing_planted():
    found = kinds.planted(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16, dtype=bool), 0, 20)
    assert not len(found.kinds)
