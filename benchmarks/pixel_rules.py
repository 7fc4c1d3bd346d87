"""The pixel threshold by share beside that by components: which one outlines planted lesions better?

    python benchmarks/pixel_rules.py run --data ../shared/data --weights FILE.pth --work WORK
    python benchmarks/pixel_rules.py table --work WORK

The detector is fitted with a split; its healthy scans of val set both thresholds and take the planted
lesions; no scan of test is read. Of each lesion: Dice of the segmentation with its mask, and whether
the segmentation covers at least a tenth of it where that of the healthy twin doesn't. ``table`` writes
``benchmarks/results/pixel_rules.md`` below what stands there in words.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from _options import cell_options, parsed, write_below
from normscan.cohort import Cohort
from normscan.decide import ComponentThreshold, PixelThreshold
from normscan.detector import Detector
from normscan.io.values import read_json, write_json
from normscan.planting.kinds import dealt, plant

RESULTS = Path(__file__).parent / "results" / "pixel_rules.md"
WEIGHTED = ("patchcore", "padim")
OVERLAP = 0.1


def cell(name: str, method: str, options: Any) -> dict[str, Any]:
    """Fit, set both thresholds on val, plant into val."""
    cohort = Cohort.read(options.data / "splits" / f"{name}.csv", root=options.data)
    arguments = {"weights": options.weights} if method in WEIGHTED else {}
    detector = Detector(method, preset="laptop", gate=False, calibration="split", **arguments)
    detector.fit(cohort)
    share, components, subjects, twins = PixelThreshold(0.05), ComponentThreshold(1.0), [], {}
    for row, found in detector.predict_cohort(cohort.part("val"), force=True):
        share.add(found.map)
        components.add(found.map, found.smallest_component)
        subjects.append(row.subject)
        twins[row.scan] = found
    by_components = components.threshold(subjects)
    thresholds = {"share 5 %": share.threshold, "1 component": max(share.threshold, by_components)}
    lines: list[dict[str, Any]] = []
    rows = {row.scan: row for row in cohort.part("val")}
    for scan, cells in dealt(list(rows)).items():
        image = rows[scan].load()
        inside = rows[scan].load_foreground(image)
        for kind, lesion in plant(image, inside, cells, 0, scan):
            found = detector.predict(lesion.scan, inside, details=False, force=True)
            for rule, threshold in thresholds.items():
                marked, before = (
                    replace(f, pixel_threshold=threshold).segmentation for f in (found, twins[scan])
                )
                new = marked[lesion.mask] & ~before[lesion.mask]
                lines.append(
                    {
                        "rule": rule, "kind": f"{kind.band} {kind.kind}",
                        "dice": 2 * float(marked[lesion.mask].sum())
                        / float(marked.sum() + lesion.mask.sum()),
                        "hit": bool(new.mean() >= OVERLAP),
                    }
                )  # fmt: skip
    healthy = {
        rule: {
            "share": float(np.mean([(f.map > t).mean() for f in twins.values()])),
            "components": float(
                np.mean(
                    [len(replace(f, pixel_threshold=t).components()) for f in twins.values()]
                )
            ),
        }
        for rule, t in thresholds.items()
    }  # fmt: skip
    return {
        "set": name, "method": method, "thresholds": thresholds, "healthy": healthy, "lines": lines,
    }  # fmt: skip


def table(work: Path) -> str:
    """Return the table of all finished cells."""
    rows = [
        "| set | method | rule | healthy pixels above | components in a healthy scan | Dice, small | "
        "Dice, large | found, small | found, large |",
        "|" + "---|" * 9,
    ]
    for path in sorted(work.glob("*.json")):
        found = read_json(path)
        parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for line in found["lines"]:
            parts[line["rule"], line["kind"].split()[0]].append(line)
        for rule, healthy in found["healthy"].items():
            figures = [
                f"{np.mean([line[key] for line in parts[rule, band]]):.3f}"
                for key in ("dice", "hit") for band in ("small", "large")
            ]  # fmt: skip
            rows.append(
                f"| {found['set']} | {found['method']} | {rule} | {healthy['share']:.4f} | "
                f"{healthy['components']:.2f} | {' | '.join(figures)} |"
            )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run cells, or write the table."""
    options = parsed(cell_options(__doc__, ("brain_mri_kaggle", "magnetic_tile_defects")))
    if options.step == "table":
        write_below(RESULTS, table(options.work))
        return
    for name in options.sets:
        for method in options.methods:
            path = options.work / f"{name}-{method}.json"
            if not path.exists():
                write_json(path, cell(name, method, options))
                print(path.stem, flush=True)


if __name__ == "__main__":
    main()
