"""Federated training: what is averaged, what stays at a site, and that it is ordinary training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import ArgumentError, CohortError, NormscanError, OutputError
from normscan.federated.rounds import plan, round_phase, shared_parameters
from normscan.federated.run import SUMMARY, federate, split_sites
from normscan.methods.base import Phase, Player, adam
from normscan.registry import card
from normscan.wrappers import wrap

OPTIONS = {"preset": "tiny", "gate": False, "preprocess": {"scaling": "none", "crop": "none"}}
SMALL = {**OPTIONS, "width": 4}


@pytest.fixture(scope="module")
def cohort(toy) -> Cohort:
    """The toy cohort as two sites of different sizes."""
    table = pd.read_csv(toy(2), dtype={"mask": str, "kind": str}, keep_default_na=False)
    table = table[table["split"] != "extra"]
    number = table.groupby("split").cumcount()
    table["site"] = np.where(number % 3 == 0, "A", "B")
    return Cohort.from_table(table, toy(2).parent)


@pytest.fixture
def flower():
    return pytest.importorskip("flwr", reason="Flower (normscan[federated]) is not installed")


# ------------------------------------------------------------------ without Flower


def built(method: str, **arguments):
    return card(method).create(**{**card(method).arguments("tiny"), "dims": 2, **arguments})


def test_feddis_shares_the_shape_branch_only():
    method = built("feddis")
    expected = {f"network.shape.{n}" for n, _ in method.network.shape.named_parameters()}
    assert set(shared_parameters(method)) == expected
    kept = {n for n, _ in method.named_parameters()} - expected
    assert {n.split(".")[1] for n in kept} == {"appearance", "mix"}


def test_a_wrapper_does_not_share_more():
    method = wrap(card("feddis"), {**card("feddis").arguments("tiny"), "dims": 2}, ("ensemble=2",))
    names = shared_parameters(method)
    assert names and all(".network.shape." in name for name in names)


def test_all_trained_parameters_by_default_and_no_buffer():
    method = built("ae_dense")
    frozen = method.network.decoder[0].weight.requires_grad_(False)
    shared = shared_parameters(method)
    everything = dict(method.named_parameters())
    assert set(everything) - set(shared) == {n for n, p in everything.items() if p is frozen}
    assert not any("running" in name for name in shared)


@pytest.mark.parametrize("wrappers", [(), ("ensemble=2",)])
def test_what_is_fitted_to_codes_of_its_own_scans_is_refused(wrappers):
    """Also inside a wrapper, before anything is trained."""
    arguments = {**card("implicit_field").arguments("tiny"), "dims": 2}
    with pytest.raises(ArgumentError, match="implicit_field can't be federated: .* code for each"):
        shared_parameters(wrap(card("implicit_field"), arguments, wrappers))


def phases(*steps: int) -> list[Phase]:
    net = torch.nn.Linear(1, 1)
    return [Phase(str(i), [Player("n", [net], adam(1.0))], steps=n) for i, n in enumerate(steps)]


def test_rounds_are_shared_out_by_the_phases_lengths():
    assert plan(phases(10, 10), 50, 1) == [0] * 25 + [1] * 25
    assert plan(phases(30, 10), 4, 1) == [0, 0, 0, 1]
    assert plan(phases(7), 3, 1) == [0, 0, 0]
    # 20 passes over 9 samples in batches of 16 are 20 steps
    mixed = [Phase("a", phases(1)[0].players, epochs=20), *phases(20)]
    assert plan(mixed, 2, 9) == [0, 1]
    with pytest.raises(ArgumentError, match="too few"):
        plan(phases(10, 10), 1, 1)


def test_methods_that_cannot_be_federated():
    two = phases(5)
    two[0].players.append(Player("critic", [], adam(1.0)))
    with pytest.raises(ArgumentError, match="critic against each other"):
        plan(two, 5, 1)
    with pytest.raises(ArgumentError, match="trains no network"):
        plan([], 5, 1)


def test_learning_rate_goes_on_over_the_rounds():
    """The factors of the rounds, put together, are those of one long phase."""
    long = phases(10, 12)
    for phase in long:
        phase.players[0].schedule = lambda step, steps: step / steps
    order = [0, 1, 1, 1]
    factors = []
    for r in (1, 2, 3):
        made = round_phase(long, order, r, 2)
        assert (made.epochs, made.steps, made.keep, made.name) == (2, None, "last", "1")
        factors += [made.players[0].schedule(s, 4) for s in range(4)]
    assert factors == [s / 12 for s in range(12)]
    assert long[1].steps == 12  # the method's own phases stay


def test_sites(cohort: Cohort):
    parts = split_sites(cohort, "site")
    assert list(parts) == ["A", "B"]
    learning = cohort.table[cohort.table["split"].isin(["train", "val"])]
    assert [len(p) for p in parts.values()] == [
        int((learning["site"] == site).sum()) for site in "AB"
    ]
    assert not set(parts["A"].table["scan"]) & set(parts["B"].table["scan"])
    assert list(split_sites(cohort, "site", ["B"])) == ["B"]
    with pytest.raises(CohortError, match="no column 'sites'. Did you mean 'site'"):
        split_sites(cohort, "sites")
    with pytest.raises(CohortError, match="'C' in column 'site'"):
        split_sites(cohort, "site", ["A", "C"])
    with pytest.raises(ArgumentError, match="clients is empty"):
        split_sites(cohort, "site", [])
    nameless = cohort.table.copy()
    nameless.loc[nameless.index[0], "site"] = ""
    with pytest.raises(CohortError, match="1 scans to learn from have nothing in column 'site'"):
        split_sites(Cohort.from_table(nameless, cohort.root), "site")


def test_flower_is_asked_for(cohort: Cohort, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "flwr", None)
    with pytest.raises(ArgumentError, match=r"pip install 'normscan\[federated\]'"):
        federate("feddis", cohort, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rounds", "local_epochs"])
def test_counts(name: str, cohort: Cohort, tmp_path: Path):
    with pytest.raises(ArgumentError, match=f"{name} is 0"):
        federate("feddis", cohort, tmp_path / "out", **{name: 0})


# --------------------------------------------------------------------- with Flower


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory):
    """Two sites, two rounds of feddis, with everything that went over the grid."""
    pytest.importorskip("flwr", reason="Flower (normscan[federated]) is not installed")
    from normscan.federated.flower import LocalGrid

    log: list[tuple] = []
    inner = LocalGrid.send_and_receive

    def spy(self, messages, *, timeout=None):
        messages = list(messages)
        replies = inner(self, messages, timeout=timeout)
        if messages:  # Flower asks nobody for an evaluation
            log.append((messages, replies))
        return replies

    out = tmp_path_factory.mktemp("federated") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalGrid, "send_and_receive", spy)
        random.seed(3)
        torch.manual_seed(3)
        before = random.getstate(), torch.random.get_rng_state()
        done = federate("feddis", cohort, out, rounds=2, local_epochs=1, **SMALL)
        assert random.getstate() == before[0]
        assert torch.equal(torch.random.get_rng_state(), before[1])
    return done, out, log


def values(message, key="arrays"):
    return {k: v.numpy() for k, v in message.content[key].items()}


def test_the_mean_is_weighted_by_samples(run):
    """What comes back in a round is the mean by hand of what was sent in the one before."""
    done, _, log = run
    assert done.samples == [16, 32]
    for (_, replies), (messages, _) in zip(log[:-1], log[1:], strict=True):
        sent = [values(r) for r in replies]
        assert [r.content["metrics"]["num-examples"] for r in replies] == [16, 32]
        for message in messages:
            for name, value in values(message).items():
                by_hand = (16 * sent[0][name].astype(float) + 32 * sent[1][name]) / 48
                np.testing.assert_allclose(value, by_hand, rtol=1e-5, atol=1e-7)
                assert not np.array_equal(sent[0][name], sent[1][name])


def test_only_the_shape_branch_is_sent(run):
    done, out, log = run
    method = built("feddis", width=4)
    names = set(shared_parameters(method))
    numbers = sum(p.numel() for p in method.network.shape.parameters())
    assert set(done.shared) == names and done.parameters == numbers
    assert done.local == sum(p.numel() for p in method.parameters()) - numbers
    for messages, replies in log[:-1]:
        for message in (*messages, *replies):
            assert set(values(message)) == names
            assert set(message.content) <= {"arrays", "config", "metrics"}
        for reply in replies:
            assert set(reply.content["metrics"]) == {"num-examples"}
    assert all(not list(reply.content) for reply in log[-1][1])  # finished: nothing to tell
    # Four bytes a number, and of names and headers less than 300 bytes an array.
    for k in range(2):
        sent = 2 * 4 * numbers
        assert sent < done.sent[k] < sent + 2 * 300 * len(names)
        assert done.received[k] > 3 * 4 * numbers
    written = json.loads((out / SUMMARY).read_text())
    assert written["sent"] == done.sent and written["folders"] == ["client_0", "client_1"]
    assert written["samples"] == [16, 32] and written["rounds"] == 2
    assert written["configuration"]["method"] == "feddis" and written["by"] == "site"


def test_the_rest_stays_at_each_site(run):
    """The last mean is in both detectors; appearance, mixing and statistics are their own."""
    done, _, log = run
    last = values(log[-1][0][0])
    a, b = (load(folder, "cpu").method.state_dict() for folder in done.folders)
    for name in a:
        if name in last:
            np.testing.assert_array_equal(a[name].numpy(), last[name])
            np.testing.assert_array_equal(b[name].numpy(), last[name])
        elif "num_batches_tracked" not in name:
            assert not torch.equal(a[name], b[name]), name
    assert any("shape" in n and "running_mean" in n for n in set(a) - set(last))


def test_detectors_are_finished(run, cohort: Cohort):
    done, _, _ = run
    assert done.sites == ["A", "B"]
    scan = cohort.part("test")[0].load()
    thresholds = []
    for k, folder in enumerate(done.folders):
        det = load(folder, "cpu")
        assert det.training["federated"] == {"site": done.sites[k], "rounds": 2}
        assert det.training["samples"]["train"] == done.samples[k]
        assert not (Path(folder) / "cache").exists()
        thresholds.append(det.scan_threshold.threshold)
        # Its own scans set its threshold.
        own = split_sites(cohort, "site")[done.sites[k]].part("val")
        scores = [f.score for _, f in det.predict_cohort(own)]
        assert len(scores) == det.training["cohort_size"]["val"]
        assert det.predict(scan).score > 0
        again = load(folder, "cpu")
        again.calibrate(own)
        assert again.scan_threshold.threshold == det.scan_threshold.threshold
    assert thresholds[0] != thresholds[1]


def test_the_same_seed_gives_the_same_bits(run, cohort: Cohort, tmp_path: Path):
    done, _, _ = run
    again = federate("feddis", cohort, tmp_path / "out", rounds=2, local_epochs=1, **SMALL)
    for one, other in zip(done.folders, again.folders, strict=True):
        assert load(one, "cpu").fingerprint == load(other, "cpu").fingerprint
    assert done.sent == again.sent


@pytest.mark.parametrize("method", ["feddis", "ae_dense"])
def test_one_site_is_ordinary_training(method: str, flower, cohort: Cohort, tmp_path: Path):
    """With one site the mean is its own: the same bits as Detector.fit, phase for round."""
    part = split_sites(cohort, "site")["A"]
    plain = Detector(method, epochs=2, steps=None, **SMALL).fit(part)
    rounds = len(plain.method.phases())
    options = {**SMALL, "epochs": 2, "steps": None}
    done = federate(method, part, tmp_path / "out", rounds=rounds, local_epochs=2, **options)
    federated = load(done.folders[0], "cpu")
    ours, theirs = federated.method.state_dict(), plain.method.state_dict()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    assert federated.scan_threshold.threshold == plain.scan_threshold.threshold


def test_it_learns(flower, cohort: Cohort, tmp_path: Path):
    """On the test scans both sites' lesions stand out more than in the mean image of the site."""
    done = federate(
        "ae_dense", cohort, tmp_path / "out", rounds=6, local_epochs=8, **{**OPTIONS, "width": 8}
    )
    test = cohort.part("test")
    for folder in done.folders:
        trained = load(folder, "cpu")
        inside, outside = [], []
        untrained = card("ae_dense").create(**trained.arguments).eval()
        ratios = []
        for method in (trained.method, untrained):
            trained.method = method
            for row, finding in trained.predict_cohort(test, details=True):
                mask = row.load_mask(finding.scan)
                inside.append(finding.map[mask].ravel())
                outside.append(finding.map[finding.foreground & ~mask])
            ratios.append(np.hstack(inside).mean() / np.hstack(outside).mean())
            inside, outside = [], []
        assert ratios[0] > ratios[1]


def test_a_failing_site_stops_the_run(flower, cohort: Cohort, tmp_path: Path, monkeypatch):
    from normscan.federated.client import Client

    inner = Client.train

    def train(self, number, epochs):
        if self.site == "B" and number == 1:
            raise RuntimeError("out of memory")
        inner(self, number, epochs)

    monkeypatch.setattr(Client, "train", train)
    with pytest.raises(NormscanError, match=r"site 1 \(site B\) failed: out of memory"):
        federate("feddis", cohort, tmp_path / "out", rounds=2, local_epochs=1, **SMALL)
    assert not list((tmp_path / "out").rglob("detector.json"))
    assert not (tmp_path / "out" / SUMMARY).exists()
    assert not list((tmp_path / "out").rglob("cache"))


def test_a_site_without_healthy_scans(flower, cohort: Cohort, tmp_path: Path):
    rows = ~((cohort.table["site"] == "B") & (cohort.table["split"] == "val"))
    with pytest.raises(
        CohortError, match=r"site 1 \(site B\): the cohort has no healthy scans in 'val'"
    ):
        federate("feddis", cohort.select(rows), tmp_path / "out", rounds=2, **SMALL)
    assert not (tmp_path / "out").exists()


def test_methods_without_a_network_or_with_a_critic(flower, cohort: Cohort, tmp_path: Path):
    small = {k: v for k, v in OPTIONS.items() if k != "preset"}
    with pytest.raises(ArgumentError, match="nothing to federate"):
        federate("mean_image", cohort, tmp_path / "a", rounds=2, **small)
    with pytest.raises(ArgumentError, match="against each other"):
        federate("f_anogan", cohort, tmp_path / "b", rounds=2, **OPTIONS)
    with pytest.raises(ArgumentError, match="none of which may leave it"):
        federate("implicit_field", cohort, tmp_path / "c", rounds=2, **OPTIONS)
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_folder_is_not_overwritten(flower, run, cohort: Cohort):
    _, out, _ = run
    with pytest.raises(OutputError, match="out exists. Choose another"):
        federate("feddis", cohort, out, rounds=2, local_epochs=1, **SMALL)


def test_parameters_that_do_not_fit_are_refused(flower, run, cohort: Cohort):
    """A message with another shape, a missing or a further parameter changes nothing."""
    from normscan.federated.client import Client

    client = object.__new__(Client)
    client.shared = {"w": torch.nn.Parameter(torch.zeros(2))}
    for arrays in (
        {"w": np.zeros(3, np.float32)},
        {},
        {"w": np.ones(2, np.float32), "v": np.ones(2, np.float32)},
    ):
        with pytest.raises(NormscanError, match="parameter"):
            client.receive(arrays)
        assert not client.shared["w"].any()
    client.receive({"w": np.ones(2, np.float32)})
    assert client.shared["w"].tolist() == [1, 1]
