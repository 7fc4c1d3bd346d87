"""Writing a cohort folder: NIfTI files that are the same bits in every run, tables and JSON."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NOTICE = "SIMULATED by normscan phantom"


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an integer array as ``.nii.gz`` without a time stamp or a file name inside.

    Args:
        path: file to write; folders are made.
        array: (X, Y) or (X, Y, Z).
        affine: (4, 4) index to MNI mm.
    """
    from nibabel import Nifti1Image

    make: Any = Nifti1Image  # nibabel is typed in part only
    image = make(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE.encode()
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=5, mtime=0))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a final newline; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], tab: bool = False
) -> None:
    """Write rows as comma- or tab-separated text; a missing cell is empty (``n/a`` with tabs)."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, columns, restval="n/a" if tab else "",
            delimiter="\t" if tab else ",", lineterminator="\n",
        )  # fmt: skip
        writer.writeheader()
        writer.writerows(rows)


def write_descriptions(folder: Path) -> None:
    """Write the BIDS descriptions of the data set and of its derivatives, and a README."""
    text = (
        "This data set is SIMULATED. No person was scanned. The brains are random deformations of "
        "the MNI152 tissue maps (ICBM 152 nonlinear symmetric 2009a, as shipped in nilearn); the "
        "lesions are drawn by formulas. It must not be used to claim clinical performance."
    )
    common = {"BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "normscan phantom"}]}
    write_json(
        folder / "dataset_description.json",
        {
            "Name": "SIMULATED brain MRI with lesions (normscan phantom)",
            "DatasetType": "raw",
            **common,
        },
    )
    for name, what in (("lesions", "exact lesion masks"), ("brain", "exact brain masks")):
        write_json(
            folder / "derivatives" / name / "dataset_description.json",
            {"Name": f"SIMULATED: {what}", "DatasetType": "derivative", **common},
        )
    (folder / "README").write_text(text + "\n", encoding="utf-8")
