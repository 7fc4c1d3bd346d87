"""Brain preprocessing on real scans: what each step does, and how long it takes on one thread.

Run with one thread: `OMP_NUM_THREADS=1 python benchmarks/brain_preprocessing.py --data ../shared/data
--pictures FOLDER > benchmarks/results/brain_preprocessing.md`
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from normscan.preprocess.brain import atlas_brain, stripped_brain
from normscan.preprocess.chain import run_steps
from normscan.preprocess.steps import Working, sample
from normscan.preprocess.template import mni152
from normscan.scan import Scan

TUMOUR, MS = "brain_tumor_3d", "ms_lesions_ljubljana_3d/patient19"
SCANS = {
    "chris_t1 (T1, head)": "healthy_brain_3d/chris_t1.nii.gz",
    "fernando (FLAIR, head, 5.5 mm)": "healthy_brain_3d/fernando_t2.nii.gz",
    "clinical T2 (head, stroke)": "stroke_3d/clinical_toolbox/T2.nii.gz",
    "norm.mgz (T1)": "healthy_brain_3d/norm.mgz",
    "BraTS t1n (tumour)": f"{TUMOUR}/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz",
    "BraTS t2f (tumour)": f"{TUMOUR}/BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz",
    "TCGA T2 (tumour)": f"{TUMOUR}/TCGA-DU-7294/TCGA-DU-7294_t2_bet.nii.gz",
    "AURORA FLAIR (metastasis)": f"{TUMOUR}/AURORA_metastasis/flair.nii.gz",
    "MSLUB 19 T1": f"{MS}/T1_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz",
    "MSLUB 19 FLAIR": f"{MS}/FLAIR_N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz",
}
SIMULATED = {  # name: brightness of fluid by that of white matter
    "norm.mgz (T1)": 0.3,
    "BraTS t1n (tumour)": 0.3,
    "BraTS t2f (tumour)": 0.25,
    "TCGA T2 (tumour)": 1.5,
}


def load(path: Path) -> Scan:
    import nibabel

    image = nibabel.load(path)
    return Scan.from_array(image.get_fdata(dtype=np.float32), affine=image.affine, source=path)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def with_skull(scan: Scan, brain: np.ndarray, fluid: float) -> tuple[Scan, np.ndarray]:
    """Put simulated fluid, dura, skull with marrow, scalp and a neck round an extracted brain.

    The grid is 20 mm wider on each side. Returns the head and the brain on its grid.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    rng = np.random.default_rng(0)
    pad = [round(20 / s) for s in scan.spacing]
    image, brain = (np.pad(a, [(p, p) for p in pad]) for a in (scan.data[0], brain))
    white = np.percentile(image[brain], 75)
    near = distance_transform_edt(~brain, sampling=scan.spacing) < 10
    hull = distance_transform_edt(near, sampling=scan.spacing) > 10
    away = distance_transform_edt(~hull, sampling=scan.spacing)
    wobble = gaussian_filter(rng.normal(size=image.shape), np.divide(15.0, scan.spacing))
    wobble = np.clip(wobble / wobble.std(), -2, 2)
    away = away * (1 + 0.15 * wobble)
    layers = [(hull, fluid), (away < 1.5, fluid), (away < 2.5, 0.55), (away < 4, 0.08),
              (away < 6.5, 0.45), (away < 8, 0.08), (away < 14, 1.25)]  # fmt: skip
    head = np.select([where for where, _ in layers], [value for _, value in layers], 0.0)
    index = np.indices(image.shape).reshape(3, -1)
    affine = scan.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(pad, float)
    place = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *image.shape)
    middle, bottom = place[:, brain].mean(axis=1), place[2][brain].min()
    axis = np.hypot(place[0] - middle[0], place[1] - middle[1])
    neck = (place[2] < bottom + 25) & (axis < 55) & (away >= 6)
    head[neck] = 0.6 * (1 + 0.3 * wobble[neck])
    head = np.where(brain, image, gaussian_filter(head, 0.4) * white)
    noisy = np.abs(head + 0.02 * white * rng.normal(size=head.shape))
    return Scan.from_array(noisy, affine=affine, source=scan.source), brain


def timed(steps: list, working: Working) -> tuple[Working, float]:
    start = time.process_time()
    done = run_steps(steps, working)
    return done, time.process_time() - start


def atlas_dice(head: Scan, brain: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a row of figures of the atlas method on a head whose brain is known."""
    start = time.process_time()
    mask, working = atlas_brain(Working.of(head))
    seconds = time.process_time() - start
    missed = float((brain & ~mask).sum() / brain.sum())
    extra = float((mask & ~brain).sum() / brain.sum())
    note = "; ".join(working.notes) or "none"
    figures = f"{dice(mask, brain):.3f} | {missed:.1%} | {extra:.1%} | {seconds:.1f} | {note}"
    return figures, mask


def before_correlation(scan: Scan) -> float:
    """Correlation with the template where the headers alone put the scan."""
    template = mni152()
    seen = sample(scan.data, np.linalg.inv(scan.affine) @ template.affine, template.image.shape)[0]
    inside = template.brain & (seen > 0)
    if inside.sum() < 1000:
        return float("nan")
    return float(np.corrcoef(seen[inside], template.image[inside])[0, 1])


def picture(path: Path, rows: list[tuple[str, Scan, np.ndarray]]) -> None:
    """Draw slices with the outline of a mask."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 5, figsize=(15, 3.2 * len(rows)), squeeze=False)
    for line, (name, scan, mask) in zip(axes, rows, strict=True):
        working = run_steps(["reorient"], Working.of(scan, mask))
        image, outline, mm = working.scan.data[0], working.foreground, working.scan.spacing
        where = np.argwhere(outline)
        low, high = where.min(axis=0), where.max(axis=0)
        views = [(2, 0.3), (2, 0.55), (2, 0.8), (0, 0.45), (1, 0.5)]
        for ax, (axis, part) in zip(line, views, strict=True):
            k = int(low[axis] + part * (high[axis] - low[axis]))
            a, b = (i for i in range(3) if i != axis)
            shown = {"origin": "lower", "cmap": "gray", "aspect": mm[b] / mm[a]}
            top = np.percentile(image[outline], 99.5)
            ax.imshow(np.take(image, k, axis).T, vmin=0, vmax=top, **shown)
            ax.contour(np.take(outline, k, axis).T, [0.5], colors="r", linewidths=0.7)
            ax.axis("off")
        line[0].set_title(name)
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--scans", nargs="*", help="parts of names; all scans if not given")
    options = parser.parse_args()

    def wanted(name: str) -> bool:
        return options.scans is None or any(part in name for part in options.scans)

    options.pictures.mkdir(parents=True, exist_ok=True)
    mni152()
    print("# Brain preprocessing\n")
    print("Command: `OMP_NUM_THREADS=1 python benchmarks/brain_preprocessing.py --data "
          "../shared/data --pictures FOLDER`. Seconds are CPU seconds on one thread.\n")  # fmt: skip
    print("## Steps on real scans\n")
    print("| scan | voxels | n4 s | field CV | extraction s | brain ml | was stripped | register s | "
          "correlation before / after | mutual information | volume ratio | rotation | bias | "
          "contrast | SNR | check s | notes |")  # fmt: skip
    print("|" + "---|" * 17)
    heads, placed = [], []
    for name, path in SCANS.items():
        if not wanted(name):
            continue
        scan = load(options.data / path)
        working, s_n4 = timed(["n4"], Working.of(scan))
        brain, s_brain = timed(["brain_extraction"], working)
        there, s_reg = timed(["register"], brain)
        checked, s_check = timed(["check_brain"], brain)
        if "brain_was_extracted" not in brain.facts:
            heads.append((name, scan, brain.foreground))
        else:
            known = stripped_brain(scan.data, scan.voxel_volume)
            assert known is not None and dice(known, brain.foreground) > 0.999
        placed.append((name, there.scan, mni_brain(there)))
        f = {**there.facts, **checked.facts}
        stripped = "yes" if "brain_was_extracted" in f else "no"
        notes = " ".join(dict.fromkeys((*there.notes, *checked.notes))) or "none"
        print(f"| {name} | {'x'.join(map(str, scan.shape))} | {s_n4:.1f} | {f['n4_field_cv']:.3f} | "
              f"{s_brain:.1f} | {f['brain_ml']:.0f} | {stripped} | {s_reg:.1f} | "
              f"{before_correlation(scan):.2f} / {f['register_correlation']:.2f} | "
              f"{f['register_information']:.2f} | {f['register_volume']:.2f} | "
              f"{f['register_rotation']:.0f} | {f['bias']:.3f} | {f['contrast']:.1f} | "
              f"{f['signal_to_noise']:.0f} | {s_check:.1f} | {notes} |", flush=True)  # fmt: skip
    print("\n## Atlas extraction where the brain is known\n")
    print(
        "Extracted brains in a simulated head (fluid, dura, skull with marrow, scalp, neck, noise).\n"
    )
    print("| scan | Dice | missed | extra | s | notes |\n|---|---|---|---|---|---|")
    for name, fluid in SIMULATED.items():
        if not wanted(name):
            continue
        scan = load(options.data / SCANS[name])
        brain = stripped_brain(scan.data, scan.voxel_volume)
        assert brain is not None
        head, known = with_skull(scan, brain, fluid)
        figures, mask = atlas_dice(head, known)
        heads.append((f"simulated head: {name}", head, mask))
        print(f"| {name} | {figures} |", flush=True)
    picture(options.pictures / "heads.png", heads)
    picture(options.pictures / "registered.png", placed)


def mni_brain(working: Working) -> np.ndarray:
    """Return the template's brain on the grid of a registered scan."""
    template = mni152()
    way = np.linalg.inv(template.affine) @ working.scan.affine
    return sample(template.brain[None].astype(np.float32), way, working.scan.shape)[0] > 0.5


if __name__ == "__main__":
    main()
