"""The gate's promise: right healthy scans pass, wrong ones are refused, and what they are taken for.

    python benchmarks/gate.py --data ../shared/data --work WORK

Gates of pictures, fitted on the healthy training and validation scans of each set, judge pictures and
whole volumes with ``Gate.check``, as ``normscan check`` and ``normscan predict`` do. Photographs are
those that scikit-image and scikit-learn bring along. Writes ``benchmarks/results/gate.md``.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from _options import gate_options, parsed
from normscan.cohort import Cohort
from normscan.io import read_scan
from normscan.phantom import simulate
from normscan.quality import Gate, GateBuilder, slices
from normscan.quality.gate import Profile
from normscan.scan import Scan, colour_first
from quality_gate import MASKS, PHANTOMS, REAL, RESULTS, rates, thinned

MOST = {"train": 300, "val": 100, "test": 60}
HEADS = ("brain_mri_kaggle", "lgg_flair_slices")  # pictures of heads from MR
PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "brick", "grass", "gravel")


def cohort_of(name: str, data: Path, work: Path) -> Cohort:
    if name in PHANTOMS:
        if not (work / name).exists():
            simulate(work / name, **PHANTOMS[name])
        return Cohort.read(work / name)
    return Cohort.read(data / name)


def gate_of(cohort: Cohort) -> Gate:
    builder = GateBuilder()
    for split in ("train", "val"):
        for row in thinned(list(cohort.part(split)), MOST[split]):
            builder.add(row.load(), row.subject, held_out=split == "val")
    return builder.build()


def test_scans(cohort: Cohort, label: int) -> list[Scan]:
    rows = [row for row in cohort.part("test") if row.label == label]
    return [row.load() for row in thinned(rows, MOST["test"])]


def photographs(grey: bool) -> list[Scan]:
    from skimage import color, data
    from sklearn.datasets import load_sample_images

    found = [np.asarray(picture) for picture in load_sample_images().images]
    for name in PHOTOGRAPHS:
        try:
            found.append(getattr(data, name)())
        except Exception:  # one that this version would download
            continue
    if grey:
        return [Scan.from_array(p if p.ndim == 2 else color.rgb2gray(p)) for p in found]
    coloured = [colour_first(p) for p in found if p.ndim == 3]
    return [Scan.from_array(array, channels=channels) for array, channels in coloured]


def volumes(data: Path) -> dict[str, list[Scan]]:
    """Whole volumes: MR heads (healthy and with lesions), CT with Hounsfield units, CT without."""
    paths = [p for p in sorted(data.glob("*3d/**/*.nii.gz")) if not masked(p.name)]
    read = {path.name: read_scan(path) for path in paths}
    kept = {name: scan for name, scan in read.items() if scan.dims == 3}
    ct = kept.pop("scct.nii.gz")
    t1 = read_scan(data / "dicom_series" / "t1w_mprage")
    # Diffusion and a map of deviations show no anatomy as the training pictures do.
    aside = [kept.pop(name) for name in list(kept) if any(w in name for w in ("adc", "dwi", "8mm"))]
    return {
        "MR heads, volumes": [*kept.values(), t1],
        "CT head, series in Hounsfield units": [read_scan(data / "dicom_series" / "head_ct_ge")],
        "CT head, template without air": [ct],
        "diffusion and statistical maps": aside,
    }


def masked(name: str) -> bool:
    return any(mark in name.lower() for mark in MASKS)


def halved(scans: Iterable[Scan], axis: int) -> list[Scan]:
    """Copies with the upper half of an axis (from the left of the array) set to their lowest value."""
    made = []
    for scan in scans:
        data = scan.data.copy()
        moved = np.moveaxis(data, axis + 1, 0)
        moved[: len(moved) // 2] = data.min()
        made.append(Scan(data, scan.affine, scan.channels, scan.source))
    return made


def measure_once() -> None:
    """Measure each scan and cut each volume once, though six gates judge them."""
    Profile.of = functools.cache(Profile.of)
    slices.axial_slices = functools.cache(slices.axial_slices)


def measure(data: Path, work: Path) -> dict[str, dict[str, tuple[dict[str, float], str]]]:
    measure_once()
    cohorts = {name: cohort_of(name, data, work) for name in (*REAL, "phantom_2d")}
    tests = {
        f"{name}, {kind}": test_scans(cohort, label)
        for name, cohort in cohorts.items()
        for label, kind in enumerate(("healthy", "lesioned"))
    }
    whole = volumes(data)
    whole["phantom_3d, healthy volumes (3 mm)"] = test_scans(cohort_of("phantom_3d", data, work), 0)
    found: dict[str, dict[str, tuple[dict[str, float], str]]] = {}
    for name, cohort in cohorts.items():
        gate = gate_of(cohort)
        own = tests[f"{name}, healthy"]
        rows = {
            **tests,
            "own healthy pictures, upper half empty": halved(own, 0),
            "own healthy pictures, left half empty": halved(own, 1),
            "photographs, grey": photographs(True),
            "photographs, colour": photographs(False),
            **whole,
        }
        if name in (*HEADS, "phantom_2d"):
            heads = whole[
                "phantom_3d, healthy volumes (3 mm)"
                if name == "phantom_2d"
                else "MR heads, volumes"
            ]
            rows["right volumes, one half empty along z"] = halved(heads, 2)
            rows["right volumes, one half empty along x"] = halved(heads, 0)
        found[name] = {}
        for title, scans in rows.items():
            verdicts = [gate.check(scan) for scan in scans]
            seems = Counter(v.seems for v in verdicts if v.status != "ok" and v.seems)
            told = "; ".join(f"{text} ({n})" for text, n in seems.most_common(2))
            found[name][title] = rates([v.status for v in verdicts]), told
        print(f"judged by {name}", flush=True)
    return found


def table(found: dict[str, dict[str, tuple[dict[str, float], str]]], command: str) -> str:
    lines = ["# The gate's promise", "", f"Command: `{command}`", ""]
    lines += [
        "Share of the scans that each gate accepts, flags and refuses, and what those it doesn't accept "
        "seem to be (the two that are named most, with their number). A gate is fitted on the healthy "
        f"training and validation scans of its set, at most {MOST['train']} and {MOST['val']}; at most "
        f"{MOST['test']} test scans of a label. Volumes are judged slice by slice, and are always flagged, "
        "since the threshold is of single pictures. The phantom's volumes have voxels of 3 mm, its pictures "
        "of 1.5 mm. Likeness and its limits were chosen while looking at "
        "these sets, see `docs/explanation/quality_gate.md`. No pictures of knees were at hand.",
        "",
    ]  # fmt: skip
    own = [entries[f"{name}, healthy"][0] for name, entries in found.items()]
    n = sum(e["n"] for e in own)
    refused = sum(round(e["refuse"] * e["n"]) for e in own)
    lines += [
        f"Healthy test pictures at their own gate: {refused} of {n} refused ({refused / n:.1%}).",
        "",
    ]
    for name, entries in found.items():
        lines += [f"## {name}", "", "| scans | n | accepted | flagged | refused | seem to be |"]
        lines += ["|---|---|---|---|---|---|"]
        for title, (rate, told) in entries.items():
            shown = f"**{title}**" if title.startswith(f"{name}, healthy") else title
            cells = " | ".join(f"{rate[s]:.0%}" for s in ("ok", "flag", "refuse"))
            lines.append(f"| {shown} | {rate['n']} | {cells} | {told} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    options = parsed(gate_options(__doc__))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(options.data, options.work)
    command = "python benchmarks/gate.py --data ../shared/data --work WORK"
    (RESULTS / "gate.md").write_text(table(found, command), encoding="utf-8")
    print(f"written: {RESULTS / 'gate.md'}")


if __name__ == "__main__":
    main()
