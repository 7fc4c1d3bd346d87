"""What every registered method must do, run for each of them straight from the registry.

Each method is trained once per number of axes with its ``tiny`` preset; the checks share that
detector. A method that fails one of these is wrong, whatever its article says.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.contract.judging import FINDINGS, LEAST, batch, detector, falls, judge

from normscan.cli.commands import fit as fit_command
from normscan.cli.main import build_parser
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.methods.base import Batch
from normscan.registry import REGIMES, SETTLED, load_all
from normscan.rng import Rng
from normscan.training.folder import DETECTOR, LOG, WEIGHTS
from normscan.training.loop import Trainer

CARDS = load_all()
# A method's tests go to one worker, which fits its detectors once (``pytest --dist loadgroup``).
ONE = {m: pytest.mark.xdist_group(m) for m in CARDS}
PLANE = [pytest.param(m, id=m, marks=ONE[m]) for m in CARDS]
CASES = [pytest.param(m, d, id=f"{m}-{d}d", marks=ONE[m]) for m in CARDS for d in CARDS[m].dims]
LEARNT = [
    pytest.param(m, id=m, marks=ONE[m]) for m in CARDS
    if CARDS[m].create(**{**CARDS[m].arguments("tiny"), "dims": 2}).phases()
]  # fmt: skip
TRAINED = [
    pytest.param(m, id=m, marks=ONE[m]) for m in CARDS
    if CARDS[m].regime in ("healthy", "healthy+unlabelled") and CARDS[m].family != "baselines"
]  # fmt: skip

with (Path(__file__).parent / "margins.csv").open(newline="") as stored:
    MARGINS = list(csv.DictReader(stored))

SHORT = 4  # updates of a phase where what is learnt doesn't matter
SOME = 40  # updates after which a loss has visibly fallen


@pytest.fixture(scope="module")
def runs(toy, tmp_path_factory):
    """Detectors trained briefly and their run folders, one per method, axes and channels."""

    @functools.cache
    def make(method: str, dims: int, channels: int = 1) -> tuple[Detector, Path]:
        folder = tmp_path_factory.mktemp("run") / "run"
        return detector(method, dims, SHORT).fit(Cohort.read(toy(dims, channels)), folder), folder

    return make


@pytest.fixture(scope="module")
def fitted(runs):
    """The detectors of ``runs``."""
    return lambda method, dims, channels=1: runs(method, dims, channels)[0]


def scans(cohort: Cohort):
    """A healthy test scan and a lesioned one of each kind, and some more healthy ones."""
    return [row.load() for row in list(cohort.part("test"))[:: 4 if len(cohort) > 50 else 1]]


# ------------------------------------------------------------------ declarations


@pytest.mark.parametrize("method", PLANE)
def test_card_is_complete(method: str):
    entry = CARDS[method]
    assert entry.regime in REGIMES
    assert set(entry.dims) <= {2, 3} and entry.dims
    assert entry.paper and entry.summary.endswith(".")
    assert {"paper", "code", "laptop", "tiny"} <= set(entry.presets)
    parameters = inspect.signature(entry.build).parameters
    assert {"dims", "channels", "size"} <= set(parameters)
    documented = inspect.getdoc(entry.build) or ""
    for name, parameter in parameters.items():
        assert parameter.default is not inspect.Parameter.empty, f"{name} has no default"
        assert f"    {name}: " in documented, f"{name} is not documented"


@pytest.mark.parametrize("method", PLANE)
def test_command_line_has_every_argument(method: str):
    entry = CARDS[method]
    text = build_parser("fit", fit_command, entry).format_help()
    for name in entry.defaults:
        if name not in SETTLED:
            assert f"--{name}" in text
    clashes = set(entry.defaults) & set(inspect.signature(fit_command).parameters)
    assert not clashes, f"these arguments belong to the command: {clashes}"


@pytest.mark.parametrize("method", PLANE)
def test_arguments_are_kept(method: str, fitted):
    det = fitted(method, CARDS[method].dims[0])
    expected = detector(method, CARDS[method].dims[0], SHORT).arguments
    assert {k: v for k, v in det.arguments.items() if k not in ("dims", *SETTLED)} == {
        k: v for k, v in expected.items() if k not in ("dims", *SETTLED)
    }
    assert det.method is not None and det.method.card is CARDS[method]


# --------------------------------------------------------------------- behaviour


@pytest.mark.parametrize(("method", "dims"), CASES)
def test_findings_are_finite_and_lie_on_the_scan(method: str, dims: int, fitted, toy):
    """The toy scans are odd and anisotropic, and none has the size of the working grid."""
    det = fitted(method, dims)
    values = []
    for scan in scans(Cohort.read(toy(dims))):
        finding = det.predict(scan)
        values.append(finding.score)
        assert 0 < finding.p_value <= 1
        if finding.map is not None:
            assert finding.map.shape == scan.shape
            assert finding.map.dtype == np.float32
            assert np.isfinite(finding.map).all()
        if finding.reconstruction is not None:
            assert finding.reconstruction.shape == scan.data.shape
            assert np.isfinite(finding.reconstruction).all()
    assert np.isfinite(values).all()
    assert np.ptp(values) > 0, "the score is constant"


@pytest.mark.parametrize("method", PLANE)
def test_three_channels(method: str, fitted, toy):
    dims = CARDS[method].dims[0]
    det = fitted(method, dims, 3)
    assert det.arguments["channels"] == 3
    finding = det.predict(scans(Cohort.read(toy(dims, 3)))[0])
    assert np.isfinite(finding.score)
    if finding.map is not None:
        assert finding.map.ndim == dims and np.isfinite(finding.map).all()


@pytest.mark.parametrize(("method", "dims"), CASES)
def test_native_maps_have_the_right_shape(method: str, dims: int, fitted):
    det = fitted(method, dims)
    images = batch(det)
    maps = det.method.maps(images)
    assert maps.map is not None or maps.score is not None
    if maps.map is not None:
        assert maps.map.shape[:2] == (3, 1) and maps.map.ndim == 2 + dims
        assert maps.map.flatten(1).std(1).min() > 0, "the map is constant"
    if maps.score is not None:
        assert maps.score.shape == (3,)
    if maps.reconstruction is not None:
        assert maps.reconstruction.shape == images.image.shape


@pytest.mark.parametrize(("method", "dims"), CASES)
def test_batch_mates_do_not_matter(method: str, dims: int, fitted):
    det = fitted(method, dims)
    together = batch(det)
    all_three = det.method.maps(together)
    alone = Batch(together.image[1:2], together.foreground[1:2], Rng([1]), together.position[1:2])
    one = det.method.maps(alone)
    for name in ("map", "score", "reconstruction", "uncertainty"):
        a, b = getattr(all_three, name), getattr(one, name)
        if a is not None:
            torch.testing.assert_close(a[1:2], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", PLANE)
def test_prediction_is_deterministic_and_leaves_no_trace(method: str, fitted, toy):
    det = fitted(method, CARDS[method].dims[0])
    scan = scans(Cohort.read(toy(CARDS[method].dims[0])))[0]
    torch.manual_seed(5)
    modes = [m.training for m in det.method.modules()]
    first = det.predict(scan)
    global_state = torch.random.get_rng_state()
    second = det.predict(scan)
    assert torch.equal(torch.random.get_rng_state(), global_state)
    assert first.score == second.score
    if first.map is not None:
        np.testing.assert_array_equal(first.map, second.map)
    assert modes == [m.training for m in det.method.modules()]


@pytest.mark.parametrize("method", PLANE)
def test_constant_image(method: str, fitted):
    """A slice without contrast, as at the top of a volume, gives finite numbers."""
    det = fitted(method, CARDS[method].dims[0])
    images = batch(det)
    maps = det.method.maps(dataclasses.replace(images, image=torch.zeros_like(images.image)))
    for value in (maps.map, maps.score):
        assert value is None or torch.isfinite(value).all()


@pytest.mark.parametrize("method", PLANE)
def test_loss_terms_are_named_and_finite(method: str):
    det = detector(method, CARDS[method].dims[0], SHORT)
    built = CARDS[method].create(**{**det.arguments, "dims": CARDS[method].dims[0]})
    det.arguments |= {"dims": CARDS[method].dims[0], "channels": 1}
    images = dataclasses.replace(batch(det, 4), rng=Rng(3))
    for phase in built.phases():
        assert phase.name and phase.players
        for player in phase.players:
            built.train()
            terms = built.loss(images, phase.name, player.name)
            assert terms and all(isinstance(k, str) and k for k in terms)
            for value in terms.values():
                assert value.ndim == 0 and torch.isfinite(value)
            # Something of the player's must learn from it.
            built.zero_grad()
            sum(terms.values()).backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in player.parameters())


# ------------------------------------------------------------- training and storage


@pytest.mark.parametrize("method", PLANE)
def test_refit_forgets_and_leaves_the_global_random_state(method: str, fitted, toy):
    """Training twice gives the same bits, also on a detector that was trained before."""
    dims = CARDS[method].dims[0]
    first = fitted(method, dims)
    cohort = Cohort.read(toy(dims))
    again = detector(method, dims, SHORT)
    again.fit(cohort.select([r.split != "test" for r in cohort]))
    torch.manual_seed(1)
    np.random.default_rng(1)
    random.seed(1)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    again.fit(cohort)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
    for (name, a), b in zip(
        first.method.state_dict().items(), again.method.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert first.scan_threshold.threshold == again.scan_threshold.threshold


@pytest.mark.parametrize(("method", "dims"), CASES)
def test_save_and_load(method: str, dims: int, fitted, toy, tmp_path: Path):
    det = fitted(method, dims)
    det.save(tmp_path / "saved")
    names = {p.name for p in (tmp_path / "saved").iterdir()}
    assert names == {DETECTOR, WEIGHTS, "card.md"}
    loaded = load(tmp_path / "saved", device="cpu")
    scan = scans(Cohort.read(toy(dims)))[-1]
    a, b = det.predict(scan), loaded.predict(scan)
    assert a.score == b.score and a.p_value == b.p_value and a.anomalous == b.anomalous
    assert a.pixel_threshold == b.pixel_threshold
    if a.map is not None:
        np.testing.assert_array_equal(a.map, b.map)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", LEARNT)
def test_resumed_equals_straight(method: str, runs, toy, tmp_path: Path, monkeypatch):
    """Killed in the middle of every phase in turn, the run ends as the straight one."""
    cohort = Cohort.read(toy(2))
    straight, folder = runs(method, 2)
    inner = Trainer._step
    killed: set[tuple[int, int]] = set()

    def step(self, index, phase, at, *rest):
        if at == SHORT // 2 and (index, at) not in killed:
            killed.add((index, at))
            raise Killed
        return inner(self, index, phase, at, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    resumed = detector(method, 2, SHORT)
    attempts = 0
    while True:
        try:
            resumed.fit(cohort, tmp_path / "resumed", resume=attempts > 0)
            break
        except Killed:
            attempts += 1
            assert attempts < 10
    assert attempts == len(straight.method.phases())
    for (name, a), b in zip(
        straight.method.state_dict().items(), resumed.method.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert straight.scan_threshold.threshold == resumed.scan_threshold.threshold
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert len((tmp_path / "resumed" / "log.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.parametrize("method", PLANE)
def test_frozen_parts_stay_frozen(method: str, toy, monkeypatch):
    """Only a phase's players change in it, and what a method froze never does."""
    dims = CARDS[method].dims[0]
    inner = Trainer._phase

    def phase(self, index, phase, state):
        frozen = {id(p) for p in self.method.parameters()}
        frozen -= {id(p) for player in phase.players for p in player.parameters()}
        before = {
            n: p.detach().clone() for n, p in self.method.named_parameters() if id(p) in frozen
        }
        inner(self, index, phase, state)
        now = dict(self.method.named_parameters())
        for name, value in before.items():
            assert torch.equal(value, now[name]), f"{name} changed in phase {phase.name}"
            assert now[name].grad is None or not now[name].grad.any()

    monkeypatch.setattr(Trainer, "_phase", phase)
    det = detector(method, dims, 3).fit(Cohort.read(toy(dims)))
    assert all(not p.requires_grad for p in det.method.parameters())


# -------------------------------------------------------------------- it must work


@pytest.mark.parametrize("method", [p for p in TRAINED if p.values[0] not in FINDINGS])
def test_beats_its_untrained_self_and_the_mean_image(method: str, toy):
    """On planted lesions that are bright, dark or of the same mean intensity."""
    verdict = judge(method, Cohort.read(toy(2)))
    assert verdict.margin > 0, verdict


@pytest.mark.parametrize("method", [p for p in TRAINED if p.values[0] in FINDINGS])
def test_what_the_toy_cannot_judge_still_learns(method: str, toy, tmp_path: Path):
    detector(method, 2, SOME).fit(Cohort.read(toy(2)), tmp_path / "run")
    fallen = falls(tmp_path / "run" / LOG)
    assert max(fallen.values()) > 0.1, f"{fallen}. {FINDINGS[method]}"


@pytest.mark.parametrize("method", TRAINED)
def test_the_verdict_hangs_on_no_seed_and_no_processor(method: str):
    """By the stored runs of ``benchmarks/toy_margins.py``; a new method needs its row."""
    rows = [row for row in MARGINS if row["method"] == method]
    assert rows, f"run: python benchmarks/toy_margins.py {method}"
    assert len({row["seed"] for row in rows}) >= 3 and len({row["setting"] for row in rows}) >= 3
    robust = min(float(row["margin"]) for row in rows) >= LEAST
    assert robust != (method in FINDINGS), "a finding that no longer holds, or a new one"
