"""What every registered method must do, run for each of them straight from the registry.

Each method is trained once per number of axes with its ``tiny`` preset; the checks share that
detector. A method that fails one of these is wrong, whatever its article says.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import functools
import inspect
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.contract.judging import FINDINGS, LEAST, axes, batch, detector, falls, judge
from tests.support.needs import Toys, needs, row_of
from tests.support.regimes import TOY_CARDS, registered

from normscan.cli.commands import fit as fit_command
from normscan.cli.main import build_parser
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError, CohortError, ScanError
from normscan.export.onnx import exported
from normscan.export.reasons import GRADIENTS, REASONS
from normscan.registry import REGIMES, SETTLED, load_all
from normscan.rng import Rng
from normscan.training.folder import DETECTOR, DIVISION, LOG, WEIGHTS
from normscan.training.loop import Trainer

# Every regime has its method: where no product method needs one yet, a toy stands in for it.
OURS = load_all()
CARDS = {**OURS, **TOY_CARDS}
# A method's tests go to one worker, which fits its detectors once (``pytest --dist loadgroup``).
ONE = {m: pytest.mark.xdist_group(m) for m in CARDS}
PLANE = [pytest.param(m, id=m, marks=ONE[m]) for m in CARDS]
CASES = [
    pytest.param(m, d, id=f"{m}-{d}d", marks=ONE[m]) for m in CARDS for d in CARDS[m].dims
    if d == 2 or not needs(CARDS[m]).volumes
]  # fmt: skip
LEARNT = [pytest.param(m, id=m, marks=ONE[m]) for m in CARDS if needs(CARDS[m]).phases]
TRAINED = [
    pytest.param(m, id=m, marks=ONE[m]) for m in OURS
    if OURS[m].regime != "zero-shot" and OURS[m].family != "baselines"
]  # fmt: skip
# One toy learns nothing, and four references that lie elsewhere are fewer than one needs.
TOYS = [m for m in TOY_CARDS if m not in ("toy_guess", "toy_nearest")]
JUDGED = [*TRAINED, *(pytest.param(m, id=m, marks=ONE[m]) for m in TOYS)]
NEEDY = [pytest.param(m, id=m, marks=ONE[m]) for m in CARDS if needs(CARDS[m]).some]
OPEN = [pytest.param(m, id=m, marks=ONE[m]) for m in CARDS if CARDS[m].regime == "zero-shot"]

with (Path(__file__).parent / "margins.csv").open(newline="") as stored:
    MARGINS = list(csv.DictReader(stored))

# Whose equalised maps jump at last bits, which differ from one size of batch to another.
STEPPED = ("ra",)

SHORT = 4  # updates of a phase where what is learnt doesn't matter
BRIEF = 2  # where only the form of a result does
# Scans of each label of a part, by axes.
FEW = {
    2: {"train": 16, "val": 6, "test": 3, "extra": 9},
    3: {"train": 8, "val": 3, "test": 2, "extra": 4},
}
SOME = 20  # updates after which a loss has visibly fallen


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_page():
    """Without the pages of healthy scans, a third of a short fit; they have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("normscan.detector.review.write_healthy", lambda path, **_: path)
        yield


@pytest.fixture(scope="module")
def every(toy, tmp_path_factory):
    """The toy cohort for a method, axes and channels: it has what the card asks for."""
    made = Toys(tmp_path_factory.mktemp, toy)
    return lambda method, dims=2, channels=1: made(CARDS[method], dims, channels)


@pytest.fixture(scope="module")
def cohorts(every):
    """A few of those scans, for what doesn't hang on how much is learnt."""

    def few(method: str, dims: int = 2, channels: int = 1) -> Cohort:
        cohort = every(method, dims, channels)
        seen: Counter[tuple[str, int | None]] = Counter()
        kept = []
        for row in cohort:
            kept.append(seen[row.split, row.label] < FEW[dims][row.split])
            seen[row.split, row.label] += 1
        return cohort.select(kept)

    return few


@pytest.fixture(scope="module")
def runs(cohorts, tmp_path_factory):
    """Detectors trained briefly and their run folders, one per method, axes and channels."""

    @functools.cache
    def make(method: str, dims: int, channels: int = 1) -> tuple[Detector, Path]:
        folder = tmp_path_factory.mktemp("run") / "run"
        steps = SHORT if (dims, channels) == (CARDS[method].dims[0], 1) else BRIEF
        with watched() as moved:
            det = detector(method, dims, steps).fit(cohorts(method, dims, channels), folder)
        MOVED[method, dims] = MOVED.get((method, dims), []) + moved
        return det, folder

    return make


# What changed in those fits though no player of the phase owns it.
MOVED: dict[tuple[str, int], list[str]] = {}


@contextlib.contextmanager
def watched():
    """Watch phases of a training: yields what changes in them that isn't their players'."""
    inner, moved = Trainer._phase, []

    def phase(self, index, phase, state):
        frozen = {id(p) for p in self.method.parameters()}
        frozen -= {id(p) for player in phase.players for p in player.parameters()}
        before = {
            n: p.detach().clone() for n, p in self.method.named_parameters() if id(p) in frozen
        }
        inner(self, index, phase, state)
        now = dict(self.method.named_parameters())
        for name, value in before.items():
            gradient = now[name].grad
            if not torch.equal(value, now[name]) or (gradient is not None and gradient.any()):
                moved.append(f"{name} in phase {phase.name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_phase", phase)
        yield moved


@pytest.fixture(scope="module")
def fitted(runs):
    """The detectors of ``runs``."""
    return lambda method, dims, channels=1: runs(method, dims, channels)[0]


def predicted(det: Detector, cohort: Cohort, number: int = 0):
    """The finding of a test scan with what stands beside it."""
    ((_, finding),) = det.predict_cohort([cohort.part("test")[number]], details=True)
    assert isinstance(finding, Finding), finding
    return finding


# ------------------------------------------------------------------ declarations


@pytest.mark.xdist_group("grouped")
def test_the_tests_of_a_method_share_a_worker(request):
    """Or each worker fits its detectors anew: some releases of pytest and xdist lose the groups."""
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@grouped")


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
def test_findings_are_finite_and_lie_on_the_scan(method: str, dims: int, fitted, cohorts):
    """The toy scans are odd and anisotropic, and none has the size of the working grid."""
    det = fitted(method, dims)
    values = []
    for _, finding in det.predict_cohort(cohorts(method, dims).part("test"), details=True):
        assert isinstance(finding, Finding), finding
        scan = finding.scan
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
def test_three_channels(method: str, fitted, cohorts):
    dims = CARDS[method].dims[0]
    det = fitted(method, dims, 3)
    assert det.arguments["channels"] == 3
    cohort = cohorts(method, dims, 3)
    finding = predicted(det, cohort)
    assert np.isfinite(finding.score)
    if finding.map is not None:
        assert finding.map.shape == finding.scan.shape and np.isfinite(finding.map).all()


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
    seen, together = det.method, batch(det)
    if method in STEPPED:
        seen, together.image = copy.deepcopy(seen).double(), together.image.double()
    all_three = seen.maps(together)
    one = seen.maps(row_of(together, 1, Rng([1])))
    for name in ("map", "score", "reconstruction", "uncertainty"):
        a, b = getattr(all_three, name), getattr(one, name)
        if a is not None:
            torch.testing.assert_close(a[1:2], b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", PLANE)
def test_prediction_is_deterministic_and_leaves_no_trace(method: str, fitted, cohorts):
    det = fitted(method, CARDS[method].dims[0])
    cohort = cohorts(method, CARDS[method].dims[0])
    torch.manual_seed(5)
    modes = [m.training for m in det.method.modules()]
    first = predicted(det, cohort)
    global_state = torch.random.get_rng_state()
    second = predicted(det, cohort)
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
    around = None if images.context is None else torch.zeros_like(images.context)
    flat = dataclasses.replace(images, image=torch.zeros_like(images.image), context=around)
    maps = det.method.maps(flat)
    for value in (maps.map, maps.score):
        assert value is None or torch.isfinite(value).all()


@pytest.mark.parametrize("method", PLANE)
def test_loss_terms_are_named_and_finite(method: str):
    det = detector(method, CARDS[method].dims[0], SHORT)
    unfitted = CARDS[method].create(**{**det.arguments, "dims": CARDS[method].dims[0]})
    det.arguments |= {"dims": CARDS[method].dims[0], "channels": 1}
    images = dataclasses.replace(batch(det, 4, method=unfitted), rng=Rng(3))
    for phase in unfitted.phases():
        assert phase.name and phase.players
        for player in phase.players:
            unfitted.train()
            terms = unfitted.loss(images, phase.name, player.name)
            assert terms and all(isinstance(k, str) and k for k in terms)
            for value in terms.values():
                assert value.ndim == 0 and torch.isfinite(value)
            # Something of the player's must learn from it.
            unfitted.zero_grad()
            sum(terms.values()).backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in player.parameters())


# ------------------------------------------------------------- training and storage


@pytest.mark.parametrize("method", PLANE)
def test_refit_forgets_and_leaves_the_global_random_state(method: str, fitted, cohorts):
    """Training twice gives the same bits, also on a detector that was trained before."""
    dims = CARDS[method].dims[0]
    first = fitted(method, dims)
    cohort = cohorts(method, dims)
    again = detector(method, dims, SHORT)
    again.fit(cohort.select([r.split != "test" for r in cohort]))
    torch.manual_seed(1)
    np.random.default_rng(1)
    random.seed(1)
    states = torch.random.get_rng_state(), repr(np.random.get_state()), random.getstate()
    again.fit(cohort)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    # With the place in the array, which changes less often than it.
    assert repr(np.random.get_state()) == states[1] and random.getstate() == states[2]
    for (name, a), b in zip(
        first.method.state_dict().items(), again.method.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert first.scan_threshold.threshold == again.scan_threshold.threshold


@pytest.mark.parametrize(("method", "dims"), CASES)
def test_save_and_load(method: str, dims: int, fitted, cohorts, tmp_path: Path):
    det = fitted(method, dims)
    det.save(tmp_path / "saved")
    names = {p.name for p in (tmp_path / "saved").iterdir()}
    assert names == {DETECTOR, DIVISION, WEIGHTS, "card.md"}
    loaded = load(tmp_path / "saved", device="cpu")
    cohort = cohorts(method, dims)
    a, b = (predicted(d, cohort, -1) for d in (det, loaded))
    assert a.score == b.score and a.p_value == b.p_value and a.anomalous == b.anomalous
    assert a.pixel_threshold == b.pixel_threshold
    if a.map is not None:
        np.testing.assert_array_equal(a.map, b.map)


@pytest.mark.parametrize("method", PLANE)
def test_the_graph_equals_torch(method: str, fitted):
    """``exported`` compares both on other images, to 1e-4 of the largest value, or refuses."""
    det = fitted(method, CARDS[method].dims[0])
    if method in REASONS or "further" in CARDS[method].defaults:
        with pytest.raises(ArgumentError, match="has no graph"):
            exported(det)
        assert det.method.needs_grad is (REASONS.get(method) == GRADIENTS)
        return
    _, signature = exported(det)
    assert "image" in signature.inputs and all(signature.members)


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", LEARNT)
def test_resumed_equals_straight(method: str, runs, cohorts, tmp_path: Path, monkeypatch):
    """Killed in the middle of every phase in turn, the run ends as the straight one."""
    dims = CARDS[method].dims[0]
    cohort = cohorts(method, dims)
    straight, folder = runs(method, dims)
    inner = Trainer._step
    killed: set[tuple[int, int]] = set()

    def step(self, index, phase, at, *rest):
        middle = min(SHORT, phase.steps or SHORT) // 2
        if at == middle and (index, at) not in killed:
            killed.add((index, at))
            raise Killed
        return inner(self, index, phase, at, *rest)

    monkeypatch.setattr(Trainer, "_step", step)
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    resumed = detector(method, dims, SHORT)
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
def test_frozen_parts_stay_frozen(method: str, fitted):
    """Only a phase's players change in it, and what a method froze never does."""
    det = fitted(method, CARDS[method].dims[0])
    assert MOVED[method, CARDS[method].dims[0]] == []
    assert all(not p.requires_grad for p in det.method.parameters())


# ---------------------------------------------------------------------- regimes


@pytest.mark.parametrize("method", NEEDY)
def test_a_cohort_that_lacks_what_it_needs_is_refused(method: str, toy):
    """Healthy scans alone: the error names what is missing, and nothing is trained."""
    cohort = Cohort.read(toy(CARDS[method].dims[0]))
    healthy = cohort.select([row.split in ("train", "val") for row in cohort])
    with pytest.raises(CohortError, match="learns from"):
        detector(method, CARDS[method].dims[0], SHORT).fit(healthy)


@pytest.mark.parametrize("method", NEEDY)
def test_what_a_new_scan_lacks_is_refused_or_done_without(method: str, fitted, toy):
    dims = 3 if needs(CARDS[method]).volumes else CARDS[method].dims[0]
    det = fitted(method, CARDS[method].dims[0])
    scan = Cohort.read(toy(dims)).part("test")[0].load()
    needed = [name for name, use in det.method.uses.items() if use.prediction == "needed"]
    if needed:
        with pytest.raises(ScanError, match=f"--{needed[0]}"):
            det.predict(scan)
    else:
        assert np.isfinite(det.predict(scan).score)


@pytest.mark.parametrize("method", OPEN)
def test_without_healthy_scans_the_decision_stays_open(method: str, cohorts, tmp_path: Path):
    dims = CARDS[method].dims[0]
    detector(method, dims).fit(None, tmp_path / "run")
    det, cohort = load(tmp_path / "run", device="cpu"), cohorts(method, dims)
    finding = predicted(det, cohort)
    assert np.isfinite(finding.score)
    assert finding.p_value is None and finding.anomalous is None and finding.segmentation is None
    det.calibrate(cohort.part("train"))
    decided = predicted(det, cohort)
    assert decided.score == finding.score and decided.p_value > 0
    assert decided.anomalous is not None


# -------------------------------------------------------------------- it must work


@pytest.mark.parametrize("method", [p for p in JUDGED if p.values[0] not in FINDINGS])
def test_beats_its_untrained_self_and_the_mean_image(method: str, every):
    """On planted lesions of all kinds; one untrained network that is clearly worse stands for all."""
    verdict = judge(method, every(method, axes(method)), quick=True)
    assert verdict.margin > 0, verdict


# A closed form has no loss.
@pytest.mark.parametrize("method", [p for p in LEARNT if p.values[0] in FINDINGS])
def test_what_the_toy_cannot_judge_still_learns(method: str, every, tmp_path: Path):
    dims = axes(method)
    detector(method, dims, SOME).fit(every(method, dims), tmp_path / "run")
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
