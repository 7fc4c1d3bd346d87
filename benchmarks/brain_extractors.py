"""The atlas mask of the brain beside deepbet's: where the brain is known, and on a real head.

    python benchmarks/brain_extractors.py --data ../shared/data --pictures FOLDER

With `deepbet-cli` on the PATH (`pipx install deepbet`). Fills the section of
`benchmarks/results/brain_preprocessing.md` between its two marks.

Cortex: what lies at most 8 mm under the surface of the known brain and belongs to the middle of three
classes of its intensities, which is grey matter on T1. On other contrasts it isn't told.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brain_preprocessing import SCANS, SIMULATED, dice, load, picture, with_skull
from normscan.preprocess import brain as brain_step
from normscan.preprocess.brain import signed_distance, stripped_brain
from normscan.preprocess.chain import run_steps
from normscan.preprocess.steps import Working
from normscan.scan import Scan

PAGE = Path(__file__).parent / "results" / "brain_preprocessing.md"
MARKS = ("<!-- extractors -->", "<!-- /extractors -->")
METHODS = ("atlas", "deepbet")
KNOWN = {**{name: SCANS[name] for name in SIMULATED}, "MSLUB 19 T1": SCANS["MSLUB 19 T1"],
         "MSLUB 19 FLAIR": SCANS["MSLUB 19 FLAIR"]}  # fmt: skip
FLUID = {**SIMULATED, "MSLUB 19 T1": 0.3, "MSLUB 19 FLAIR": 0.25}
T1 = ("norm.mgz (T1)", "BraTS t1n (tumour)", "MSLUB 19 T1")
WIDTHS = (0, 1, 1.5, 2, 3)
HEAD = "chris_t1 (T1, head)"


def cortex(head: Scan, brain: np.ndarray) -> np.ndarray:
    """Return the grey matter near the surface of a brain on T1."""
    from sklearn.cluster import KMeans

    values = head.data[0][brain][:, None]
    start = np.percentile(values, [5, 40, 85])[:, None]
    classes = KMeans(3, init=start, n_init=1).fit(values[:: max(len(values) // 50_000, 1)])
    middle = np.argsort(classes.cluster_centers_[:, 0])[1]
    grey = np.zeros_like(brain)
    grey[brain] = classes.predict(values) == middle
    return grey & (signed_distance(brain, head.spacing) <= 8)


def cpu() -> float:
    """CPU seconds of this process and of the programs it called."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def masks(head: Scan) -> dict[str, tuple[np.ndarray, float]]:
    found = {}
    for method in METHODS:
        start = cpu()
        step = {"brain_extraction": {"method": method, "strip": False}}
        mask = run_steps([step], Working.of(head)).foreground
        assert mask is not None
        found[method] = mask, cpu() - start
    return found


def heads(data: Path) -> Iterator[tuple[str, Scan, np.ndarray, np.ndarray | None]]:
    """Yield simulated heads: name, head, known brain, its cortex on T1."""
    for name, path in KNOWN.items():
        scan = load(data / path)
        brain = stripped_brain(scan.data, scan.voxel_volume)
        assert brain is not None
        head, known = with_skull(scan, brain, FLUID[name])
        yield name, head, known, cortex(head, known) if name in T1 else None


def figures(mask: np.ndarray, known: np.ndarray, grey: np.ndarray | None) -> str:
    """Return the cells of Dice, missed, extra and cortex cut."""
    cut = "" if grey is None else f"{(grey & ~mask).sum() / grey.sum():.1%}"
    missed, extra = (known & ~mask).sum() / known.sum(), (mask & ~known).sum() / known.sum()
    return f"{dice(mask, known):.3f} | {missed:.1%} | {extra:.1%} | {cut}"


def rows(data: Path, drawn: list[tuple[str, Scan, np.ndarray]]) -> list[str]:
    lines = []
    for name, head, known, grey in heads(data):
        for method, (mask, seconds) in masks(head).items():
            lines.append(f"| {name} | {method} | {figures(mask, known, grey)} | {seconds:.0f} |")
            drawn.append((f"{name}: {method}", head, mask))
            print(lines[-1], flush=True)
    return lines


def real(data: Path, drawn: list[tuple[str, Scan, np.ndarray]]) -> list[str]:
    head = load(data / SCANS[HEAD])
    found = masks(head)
    (ours, _), (theirs, _) = found["atlas"], found["deepbet"]
    drawn += [(f"{HEAD}: {method}", head, mask) for method, (mask, _) in found.items()]
    grey = cortex(head, theirs)
    return [
        f"On {HEAD} the two agree with a Dice of {dice(ours, theirs):.3f}: "
        f"{ours.sum() * head.voxel_volume / 1000:.0f} ml by the atlas, "
        f"{theirs.sum() * head.voxel_volume / 1000:.0f} ml by deepbet. Of the cortex as deepbet's "
        f"mask has it the atlas leaves out {(grey & ~ours).sum() / grey.sum():.1%}. CPU-seconds: "
        + ", ".join(f"{method} {seconds:.0f}" for method, (_, seconds) in found.items())
        + "."
    ]


def margins(data: Path) -> None:
    """Print what the atlas mask is when it is widened by other widths at last."""
    from scipy.ndimage import distance_transform_edt

    brain_step.MARGIN = 0.0
    print(
        "| scan | widened by mm | Dice | missed | extra | cortex cut |\n|---|---|---|---|---|---|"
    )
    for name, head, known, grey in heads(data):
        mask, _ = brain_step.atlas_brain(Working.of(head))
        away = distance_transform_edt(~mask, sampling=head.spacing)
        for width in WIDTHS:
            print(f"| {name} | {width} | {figures(away <= width, known, grey)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, default=Path("runs/brain_extractors"))
    parser.add_argument("--margins", action="store_true", help="print the table of widths instead")
    options = parser.parse_args()
    if options.margins:
        margins(options.data)
        return
    options.pictures.mkdir(parents=True, exist_ok=True)
    drawn: list[tuple[str, Scan, np.ndarray]] = []
    head = "| scan | method | Dice | missed | extra | cortex cut | CPU s |\n|---|---|---|---|---|---|---|"
    lines = [head, *rows(options.data, drawn), "", *real(options.data, drawn)]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    block = "\n".join([MARKS[0], "", *lines, "", MARKS[1]])
    PAGE.write_text(before + block + after, encoding="utf-8")
    picture(options.pictures / "extractors.png", drawn)


if __name__ == "__main__":
    main()
