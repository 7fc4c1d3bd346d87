"""Which reduction of the map planted lesions choose, and what it does on test scans.

    python benchmarks/reductions.py run --data ../shared/data --weights FILE.pth --work WORK
    python benchmarks/reductions.py simulate --work WORK
    python benchmarks/reductions.py table --work WORK

Each cell is (set, method). The choice is that of ``normscan fit --reduction evidence``: lesions are
planted into healthy scans of train and val that the detector didn't learn from, no test scan takes
part. Where the choice isn't the usual score, the method is fitted again with the usual one, and both
are run over the test part: that is a check, from which nothing is chosen. A finished cell is not run
again. ``simulate`` draws scores of 20 equally good reductions, lets planted lesions choose one of them
and counts false alarms: the choice looks at the healthy scans that set the threshold. ``table``
writes ``benchmarks/results/scores.md`` below what stands there in words.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from _options import cell_options, parsed, write_below
from normscan.cohort import Cohort
from normscan.decide import ScanThreshold
from normscan.decide.judging import Trials, choose, judge
from normscan.detector import Detector
from normscan.errors import NormscanError
from normscan.io.values import read_json, write_json
from normscan.metrics.images import image_metrics

RESULTS = Path(__file__).parent / "results" / "scores.md"
SIMULATED = "simulated.json"
WEIGHTED = ("patchcore", "padim")
FPR = 0.05


def fitted(cohort: Cohort, method: str, reduction: str | None, options: Any) -> Detector:
    arguments = {"weights": options.weights} if method in WEIGHTED else {}
    detector = Detector(
        method, preset="laptop", fpr=FPR, gate=False, reduction=reduction,
        calibration=options.calibration, **arguments,
    )  # fmt: skip
    detector.fit(cohort)
    return detector


def tested(detector: Detector, cohort: Cohort) -> dict[str, Any]:
    """What the detector flags of the test part."""
    labels, scores, flagged = [], [], []
    for row, found in detector.predict_cohort(cohort.part("test"), force=True):
        if not isinstance(found, NormscanError):
            labels.append(row.label)
            scores.append(found.score)
            flagged.append(bool(found.anomalous))
    truth, called = np.array(labels), np.array(flagged)
    alarms = int(called[truth == 0].sum())
    low, high = binomtest(alarms, int((truth == 0).sum())).proportion_ci(method="exact")
    threshold = detector.scan_threshold
    assert threshold is not None
    return {
        "reduction": detector.training.get("reduction", {}).get("chosen", detector.reduction),
        "promised": threshold.expected_fpr, "alarms": float(called[truth == 0].mean()),
        "low": low, "high": high, "sensitivity": float(called[truth == 1].mean()),
        "auroc": image_metrics(np.array(scores), truth).auroc.value,
    }  # fmt: skip


def cell(name: str, method: str, options: Any) -> dict[str, Any]:
    """Choose, then check."""
    cohort = Cohort.read(options.data / "splits" / f"{name}.csv", root=options.data)
    begun = time.process_time()
    detector = fitted(cohort, method, "evidence", options)
    seconds = time.process_time() - begun
    chosen = detector.training["reduction"]
    check = {"chosen": tested(detector, cohort)}
    if chosen["chosen"] != chosen["usual"]:
        check["usual"] = tested(fitted(cohort, method, None, options), cohort)
    return {
        "set": name, "method": method, "calibration": detector.calibration.kind,
        "seconds": seconds, "choice": chosen, "check": check,
    }  # fmt: skip


def simulated(n: int, repetitions: int = 400, scores: int = 20, shared: float = 0.7) -> list[float]:
    """Return promised rate, and realised rates of the first score and of the chosen one.

    Args:
        n: healthy subjects.
        repetitions: sets of them.
        scores: to choose from; ``shared`` of their variance is the scan's, so that they agree.
        shared: see above.
    """
    rates = []
    for seed in range(repetitions):
        rng = np.random.default_rng((n, seed))

        def drawn(count: int, rng: np.random.Generator = rng) -> np.ndarray:
            own = rng.normal(size=(count, scores))
            return np.sqrt(shared) * rng.normal(size=(count, 1)) + np.sqrt(1 - shared) * own

        healthy, fresh = drawn(n), drawn(2000)
        owners = np.repeat(np.arange(n), max(2, -(-120 // n)))
        planted = healthy[owners] + rng.gamma(2.0, 0.7, (len(owners), 1))
        planted = planted + 0.3 * rng.normal(size=planted.shape)
        trials = Trials.of(range(n), owners.tolist(), ["lesion"] * len(owners), FPR)
        names = [str(k) for k in range(scores)]
        judged = judge(
            dict(zip(names, healthy.T, strict=True)),
            dict(zip(names, planted.T, strict=True)),
            trials,
        )
        taken = int(choose(judged).name)
        found = [ScanThreshold.fit(healthy[:, k], FPR) for k in (0, taken)]
        realised = [
            (fresh[:, k] > rule.threshold).mean() for k, rule in zip((0, taken), found, strict=True)
        ]
        rates.append([found[0].expected_fpr, *realised, float(taken != 0)])
    return np.mean(rates, axis=0).tolist()


def short(name: str) -> str:
    """The name of a reduction without its learnt level."""
    first, plus, options = name.partition("+")
    return first.partition("=")[0] + plus + options


def table(work: Path) -> str:
    """Return the tables of all finished cells."""
    cells = [read_json(path) for path in sorted(work.glob("*-*.json"))]
    choice = [
        "## The choice, from healthy scans and planted lesions\n",
        "| set | method | calibration | subjects | lesions | judged at | usual: found (worst kind) | "
        "highest: found (worst kind) | chosen: found (worst kind) |",
        "|" + "---|" * 9,
    ]
    check = [
        "\n## Check on the test part, never used for choosing\n",
        "| set | method | score | promised | false alarms (interval) | sensitivity | AUROC |",
        "|" + "---|" * 7,
    ]
    sums: dict[str, list[tuple[float, float, float]]] = {}
    for found in cells:
        record = found["choice"]
        judged = {short(entry["name"]): entry for entry in record.get("judged", [])}
        head = f"| {found['set']} | {found['method']} |"
        if judged:
            best = max(judged, key=lambda name: judged[name]["sensitivity"])
            parts = [
                f"{name}: {judged[name]['sensitivity']:.2f} ({judged[name]['worst']:.2f})"
                for name in (short(record["usual"]), best, short(record["chosen"]))
            ]
            choice.append(
                f"{head} {found['calibration']} | {record['subjects']} | {record['lesions']} | "
                f"{record['judged_at']:.2f} | {' | '.join(parts)} |"
            )
            for name, entry in judged.items():
                figures = (entry["sensitivity"], entry["worst"], entry["auroc"])
                sums.setdefault(name, []).append(figures)
        else:
            choice.append(f"{head} {found['calibration']} | {record['reason']} |" + " |" * 5)
        for kind, line in found["check"].items():
            check.append(
                f"{head} {kind}, {short(line['reduction'])} | {line['promised']:.3f} | "
                f"{line['alarms']:.3f} ([{line['low']:.2f}, {line['high']:.2f}]) | "
                f"{line['sensitivity']:.3f} | {line['auroc']:.3f} |"
            )
    means = [
        "\n## Every reduction, mean over the cells that judged it\n",
        "| score | cells | planted lesions found | worst kind | AUROC |", "|" + "---|" * 5,
    ]  # fmt: skip
    for name, figures in sorted(sums.items(), key=lambda item: -np.mean(item[1], axis=0)[0]):
        mean = np.mean(figures, axis=0)
        means.append(f"| {name} | {len(figures)} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} |")
    return "\n".join([*choice, *means, *check, *simulation(work / SIMULATED)]) + "\n"


def simulation(path: Path) -> list[str]:
    """Return the lines of the simulated rates, if there are any."""
    if not path.exists():
        return []
    rows = [
        "\n## False alarms after a choice among 20 equally good scores, simulated\n",
        "| healthy subjects | promised | realised, fixed score | realised, chosen score | another than "
        "the usual was chosen |",
        "|" + "---|" * 5,
    ]
    for n, (promised, fixed, chosen, changed) in read_json(path).items():
        rows.append(f"| {n} | {promised:.3f} | {fixed:.3f} | {chosen:.3f} | {changed:.2f} |")
    return rows


def main() -> None:
    """Run cells, or write the tables."""
    sets = ("brain_mri_kaggle", "head_ct_kaggle")
    parser = cell_options(__doc__, sets, ("run", "simulate", "table"))
    parser.add_argument("--calibration", default="auto")
    options = parsed(parser)
    if options.step == "table":
        write_below(RESULTS, table(options.work))
        return
    if options.step == "simulate":
        write_json(options.work / SIMULATED, {n: simulated(n) for n in (20, 40, 100, 200)})
        return
    for name in options.sets:
        for method in options.methods:
            path = options.work / f"{name}-{method}.json"
            if path.exists():
                continue
            found = cell(name, method, options)
            write_json(path, found)
            print(path.stem, found["choice"]["reason"], f"{found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
