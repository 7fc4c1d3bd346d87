"""Small BIDS data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

GROUPS = {"01": "control", "02": "control", "03": "control", "04": "patient", "05": "patient"}


def volume(path: Path, seed: int = 0, values: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.random.default_rng(seed).normal(100, 9, (8, 9, 10)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 3, 1])), path)
    return path


def describe(root: Path, kind: str = "raw") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    text = {"Name": "toy", "BIDSVersion": "1.10.0", "DatasetType": kind}
    (root / "dataset_description.json").write_text(json.dumps(text))
    return root


def tsv(path: Path, *lines: str) -> Path:
    path.write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    return path


def raw_tree(root: Path) -> Path:
    """Five subjects with T1w and FLAIR (04 without FLAIR), two sessions for 01, one row too many."""
    describe(root)
    for number, (sub, _) in enumerate(GROUPS.items()):
        for ses in ("1", "2") if sub == "01" else ("1",):
            base = root / f"sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}"
            volume(Path(f"{base}_T1w.nii.gz"), 10 * number + int(ses))
            if sub != "04":
                volume(Path(f"{base}_FLAIR.nii.gz"), 10 * number + 5 + int(ses))
    rows = [f"sub-{sub} {group} {20 + int(sub)} A" for sub, group in GROUPS.items()]
    tsv(root / "participants.tsv", "participant_id group age Site", *rows, "sub-99 control n/a B")
    for junk in ("sourcedata/sub-07/anat/sub-07_T1w.nii.gz", "sub-01/ses-1/anat/.sub-01_T1w.nii.gz",
                 "code/sub-08_T1w.nii.gz"):  # fmt: skip
        volume(root / junk)
    (root / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json").write_text("{}")
    return root
