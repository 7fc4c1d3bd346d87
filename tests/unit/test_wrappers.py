"""Wrappers: passed through, averaged as by hand, outliers found without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.impure_training import ImpureTraining, Ledger
from normscan.methods.wrapped import averaged
from normscan.registry import card
from normscan.rng import Rng
from normscan.training.loop import Trainer
from normscan.wrappers import check_wrappers, wrap
from normscan.wrappers.ensemble import Ensemble
from normscan.wrappers.stochastic import Flips, MonteCarlo

AS_THEY_ARE = {"scaling": "none", "crop": "none"}


def images(n: int = 3, size: int = 32) -> Batch:
    x = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0))
    foreground = torch.zeros(n, 1, size, size, dtype=torch.bool)
    foreground[..., 4:20, 8:30] = True
    return Batch(x, foreground, Rng(list(range(n))), torch.full((n,), 0.5))


def tiny(method: str, *chain: str, **arguments) -> Method:
    entry = card(method)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = wrap(entry, entry.arguments("tiny", dims=2, **arguments), chain)
    return built.eval().requires_grad_(False)


def detector(method: str, *chain: str, **arguments) -> Detector:
    return Detector(
        method, preset="tiny", preprocess=AS_THEY_ARE, gate=False, wrappers=chain, dims=2,
        **arguments,
    )  # fmt: skip


# ------------------------------------------------------------------------ chains


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        (["ensembel=3"], "Did you mean 'ensemble'"),
        (["ensemble=many"], "is no number"),
        (["ensemble=1"], "from 2"),
        (["monte_carlo=2.5"], "whole number"),
        (["monte_carlo=5"], "no dropout layer"),
        (["flips=14"], "digits 1 to 3"),
        (["flips=11"], "digits 1 to 3"),
        (["normalised"], "no uncertainty"),
        (["ensemble=2", "normalised=0"], "above 0"),
        (["impure=-1"], "cut=-1"),
    ],
)
def test_wrong_chains_are_refused(chain: list[str], text: str):
    with pytest.raises(ArgumentError, match=text):
        check_wrappers(chain)
        tiny("ae_dense", *chain)


def test_an_axis_that_is_not_there_is_refused_before_training(toy):
    with pytest.raises(ArgumentError, match="no axis 3"):
        detector("ae_dense", "flips=3", steps=1).fit(Cohort.read(toy(2)))


# --------------------------------------------------------------------- averaging


def test_means_and_variance_against_torch():
    generator = torch.Generator().manual_seed(1)
    stack = torch.randn(7, 2, 1, 4, 4, generator=generator)
    scores = torch.randn(7, 2, generator=generator)
    maps, variance = averaged(Maps(map=m, score=s) for m, s in zip(stack, scores, strict=True))
    torch.testing.assert_close(maps.map, stack.mean(0))
    torch.testing.assert_close(maps.score, scores.mean(0))
    torch.testing.assert_close(variance, stack.var(0))
    assert maps.reconstruction is None and maps.uncertainty is None


def test_ensemble_is_the_mean_of_copies_that_differ():
    method, batch = tiny("ae_dense", "ensemble=3"), images()
    assert isinstance(method, Ensemble)
    each = torch.stack([m.maps(batch).map for m in method])
    assert (each[0] - each[1]).abs().max() > 0.01
    maps = method.maps(batch)
    torch.testing.assert_close(maps.map, each.mean(0))
    torch.testing.assert_close(maps.uncertainty, each.var(0))


def test_normalised_divides_by_the_deviation():
    plain, divided = (
        tiny("ae_dense", "ensemble=3"),
        tiny("ae_dense", "ensemble=3", "normalised=0.13"),
    )
    maps = plain.maps(images())
    expected = maps.map / maps.uncertainty.sqrt().clamp_min(0.13)
    torch.testing.assert_close(divided.maps(images()).map, expected)
    assert (maps.uncertainty.sqrt() < 0.13).any() and (maps.uncertainty.sqrt() > 0.13).any()


class Ramp(Method):
    """Map: the image times a ramp along the first axis; nothing is symmetric."""

    def maps(self, batch: Batch) -> Maps:
        ramp = torch.arange(batch.image.shape[2]).float()[:, None]
        return Maps(map=batch.image * ramp, score=batch.image[:, 0, 0, 0])


def test_flips_by_hand():
    batch = images(2, 5)
    batch.foreground = torch.ones_like(batch.image, dtype=torch.bool)
    maps = Flips(Ramp(), (1,)).maps(batch)
    # The ramp and its mirror image sum to the same number in each row.
    torch.testing.assert_close(maps.map, batch.image * 2)
    x = batch.image[:, 0]
    torch.testing.assert_close(maps.score, (x[:, 0, 0] + x[:, 4, 0]) / 2)
    both = Flips(Ramp(), (1, 2)).maps(batch)
    corners = (x[:, 0, 0] + x[:, 4, 0] + x[:, 0, 4] + x[:, 4, 4]) / 4
    torch.testing.assert_close(both.score, corners)
    torch.testing.assert_close(both.map, batch.image * 2)


class Dropped(Method):
    """The image after dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.25)

    def maps(self, batch: Batch) -> Maps:
        return Maps(map=self.dropout(batch.image))


def test_monte_carlo_has_the_moments_of_dropout():
    """x times 4/3 with probability 3/4: mean x, variance x^2 / 3."""
    batch = images(2, 24)
    batch.image = torch.full_like(batch.image, 0.6)
    maps = MonteCarlo(Dropped().eval(), 400).maps(batch)
    assert maps.map.mean().item() == pytest.approx(0.6, rel=0.01)
    assert maps.uncertainty.mean().item() == pytest.approx(0.36 / 3, rel=0.02)


@pytest.mark.parametrize(
    ("chain", "arguments"),
    [
        (("monte_carlo=3",), {"dropout": 0.2}),
        (("flips=12",), {}),
        (("monte_carlo=3", "flips", "ensemble=2", "normalised"), {"dropout": 0.2}),
    ],
)
def test_batch_mates_do_not_matter(chain, arguments):
    method, batch = tiny("ae_dense", *chain, **arguments), images()
    together = method.maps(batch)
    again = method.maps(dataclasses.replace(batch, rng=Rng([0, 1, 2])))
    alone = Batch(batch.image[1:2], batch.foreground[1:2], Rng([1]), batch.position[1:2])
    one = method.maps(alone)
    for name in ("map", "reconstruction", "uncertainty"):
        a = getattr(together, name)
        if a is not None:
            assert torch.equal(a, getattr(again, name))
            torch.testing.assert_close(a[1:2], getattr(one, name), rtol=1e-3, atol=1e-4)
    assert not any(m.training for m in method.modules())


# -------------------------------------------------------------------- pass-through


def test_ensemble_trains_players_in_phases_of_each_copy():
    """Several phases and players: each copy has them under its number, and its own loss."""
    method = tiny("f_anogan", "ensemble=2")
    single = tiny("f_anogan")
    names = [p.name for p in single.phases()]
    assert len(names) == 2
    assert [p.name for p in method.phases()] == [f"{i}/{n}" for i in (1, 2) for n in names]
    batch = dataclasses.replace(images(4), rng=Rng(0))
    for member, phase in zip((0, 1), ("1/" + names[1], "2/" + names[1]), strict=True):
        player = next(p for p in method.phases() if p.name == phase).players[0]
        owned = {id(p) for p in list(method)[member].parameters()}
        assert {id(p) for p in player.parameters()} <= owned
        got = method.loss(dataclasses.replace(batch, rng=Rng(0)), phase, player.name)
        direct = list(method)[member].loss(
            dataclasses.replace(batch, rng=Rng(0)), names[1], player.name
        )
        assert {k: float(v) for k, v in got.items()} == {k: float(v) for k, v in direct.items()}


def test_ensemble_of_a_closed_form_gets_all_batches_each(toy):
    cohort = Cohort.read(toy(2))
    single = detector("mean_image").fit(cohort)
    several = detector("mean_image", "ensemble=2").fit(cohort)
    for member in several.method:
        assert torch.equal(member.mean, single.method.mean)
    banks = [m.bank.vectors for m in detector("patchcore", "ensemble=2").fit(cohort).method]
    assert banks[0].shape == banks[1].shape and not torch.equal(*banks)


def test_a_closed_form_from_an_iterator():
    method = tiny("mean_image", "ensemble=2")
    method.fit(iter([images(), images()]))
    for member in method:
        torch.testing.assert_close(member.mean, images().image.mean(0, keepdim=True))


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "chain", [("ensemble=2", "flips"), ("impure=0.5", "ensemble=2")], ids=["copies", "ledger"]
)
def test_resumed_saved_and_loaded(chain, toy, tmp_path, monkeypatch):
    """Killed while errors are noted and scans are out, the run ends as the straight one."""
    cohort = Cohort.read(toy(2))
    # 48 samples in batches of 16: passes of 3 steps, the first measured one is the second.
    arguments = {"steps": 12, "batch_size": 16}
    straight = detector("ae_dense", *chain, **arguments).fit(cohort, tmp_path / "straight")
    if "ensemble=2" in chain[1:]:
        found = straight.training["members"]
        assert all(found[i]["dropped"] for i in "12")
    inner, done = Trainer._step, set()

    def step(self, index, phase, at, *rest):
        if at == 8 and index not in done:
            done.add(index)
            raise Killed
        return inner(self, index, phase, at, *rest)

    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "_step", step)
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    resumed = detector("ae_dense", *chain, **arguments)
    for attempt in range(3):
        try:
            resumed.fit(cohort, tmp_path / "resumed", resume=attempt > 0)
        except Killed:
            continue
    assert len(done) == 2
    loaded = load(tmp_path / "resumed", device="cpu")
    assert loaded.training.get("members") == straight.training.get("members")
    row = next(iter(cohort.part("test")))
    expected = straight.predict(row.load())
    state = straight.method.state_dict()
    for other in (resumed, loaded):
        assert other.wrappers == chain
        assert all(torch.equal(v, state[k]) for k, v in other.method.state_dict().items())
        np.testing.assert_array_equal(other.predict(row.load()).map, expected.map)


# ------------------------------------------------------------------- impure training


class Recorded(Method):
    """Map: the image. Remembers which samples its loss and its closed form saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.fitted: list[int] = []

    def phases(self) -> list[Phase]:
        player = Player("network", [self], adam(1e-3))
        other = Phase("elsewhere", [player], steps=9, batch_size=4, part="unlabelled")
        return [Phase("train", [player], epochs=10, batch_size=4), other]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        self.seen.append(batch.index.tolist())
        assert len(batch.columns) == len(batch.image) == len(batch.subject)
        return {"zero": self.weight.sum() * 0}

    def maps(self, batch: Batch) -> Maps:
        assert not self.training
        return Maps(map=batch.image)


def numbered(indices: Iterable[int], level: np.ndarray, per_subject: int = 1) -> Batch:
    """Samples whose map is a number in the foreground and another one outside it."""
    indices = np.array(list(indices))
    batch = images(len(indices), 32)
    batch.image = torch.where(
        batch.foreground, torch.from_numpy(level[indices])[:, None, None, None].float(), 99.0
    )
    batch.index = torch.from_numpy(indices)
    batch.subject = torch.from_numpy(indices // per_subject)
    batch.columns = [{"i": int(i)} for i in indices]
    return batch


def passes(method: Method, level: np.ndarray, n: int, per_subject: int = 1) -> list[set[int]]:
    """Run whole passes in batches of four; return who was trained on in each."""
    seen = method.inner.seen
    result = []
    for _ in range(n):
        seen.clear()
        for start in range(0, len(level), 4):
            method.loss(numbered(range(start, start + 4), level, per_subject), "train", "network")
        result.append({i for batch in seen for i in batch})
    return result


def test_outliers_beyond_the_quartiles_are_left_out_after_the_warm_up():
    level = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 9.0])
    q1, q3 = np.quantile(level, (0.25, 0.75))
    assert (level > q3 + 1.5 * (q3 - q1)).tolist() == [False] * 7 + [True]
    method = ImpureTraining(Recorded(), 1.5, warm_up=0.2)  # of 10 passes: the third is measured
    everyone = set(range(8))
    assert passes(method, level, 4) == [everyone] * 3 + [everyone - {7}]
    assert method.found([f"scan{i}" for i in range(8)], range(8)) == {"dropped": ["scan7"]}
    # It is still watched, and comes back when it is no longer one.
    assert passes(method, np.where(level == 9, 1.0, level), 2)[1] == everyone
    assert method.found([f"scan{i}" for i in range(8)], range(8)) == {"dropped": []}


def test_subjects_are_judged_as_a_whole():
    level = np.ones(24) + np.arange(24) / 100
    level[6:8] = 5, 9  # both samples of subject 3
    level[12] = 1.3  # one of subject 6, within the limit on average
    method = ImpureTraining(Recorded(), 1.5, warm_up=0)
    assert passes(method, level, 2, per_subject=2)[1] == set(range(24)) - {6, 7}


def test_a_batch_of_outliers_keeps_the_two_least():
    level = np.ones(20) + np.arange(20) / 100
    level[4:8] = 8, 5, 7, 6
    method = ImpureTraining(Recorded(), 1.5, warm_up=0)
    assert passes(method, level, 2)[1] == set(range(20)) - {4, 6}


def test_other_parts_validation_and_samples_without_a_number_pass():
    level = np.array([1.0, 1, 1, 1, 1, 1, 1, 9])
    method = ImpureTraining(Recorded(), 1.5, warm_up=0)
    passes(method, level, 2)
    batch = numbered(range(4, 8), level)
    kept = method.inner.seen
    kept.clear()
    method.loss(batch, "elsewhere", "network")
    with torch.no_grad():
        method.loss(batch, "train", "network")
    assert kept == [[4, 5, 6, 7]] * 2


def test_a_closed_form_is_fitted_without_them():
    level = np.array([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 3.0])
    method = tiny("mean_image", "impure")
    batches = [numbered(range(4), level), numbered(range(4, 8), level)]
    method.fit(iter(batches))
    assert method.found(list("abcdefgh"), range(8)) == {"dropped": ["h"]}
    inside = batches[0].foreground[0, 0]
    assert method.inner.mean[0, 0][inside].mean().item() == pytest.approx(level[:7].mean())


def test_the_ledger_survives_packing_with_all_its_bits():
    ledger = Ledger()
    ledger.begin_phase(2, True)
    ledger.make_room(5, 3)
    ledger.seen[[0, 3]] = True
    ledger.note(np.array([0, 2, 2]), np.array([0.1, 1 / 3, 1e-300]))
    ledger.dropped[1], ledger.calls, ledger.passes = True, 7, 1
    back = Ledger.unpack(ledger.pack())
    for name, value in vars(ledger).items():
        np.testing.assert_array_equal(getattr(back, name), value)
    for damaged in (ledger.pack()[:-1], torch.tensor([0, 0, 0, 0, -9, 3])):
        with pytest.raises(ValueError, match="damaged"):
            Ledger.unpack(damaged)


def test_best_weights_come_back_without_the_ledger_of_their_time():
    level = np.array([1.0, 1, 1, 1, 1, 1, 1, 9])
    method = ImpureTraining(Recorded(), 1.5, warm_up=0)
    passes(method, level, 1)
    early = {k: v.clone() for k, v in method.state_dict().items()}
    passes(method, level, 1)
    method.load_weights(early)
    assert method.ledger.dropped[7]
    fresh = ImpureTraining(Recorded(), 1.5, warm_up=0)
    fresh.load_weights(early)
    assert fresh.ledger.seen.all() and not fresh.ledger.dropped.any()
