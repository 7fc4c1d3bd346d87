"""A detector as an inference task of MONAI Label, which 3D Slicer and OHIF talk to.

    pip install monailabel normscan

In the application's ``main.py``::

    def init_infers(self):
        return {"normscan": NormscanInfer("runs/head")}

The answer is the segmentation on the grid of the image, one label a component, and what was found as
parameters. Where nothing is above the threshold the segmentation is empty.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

import normscan as ns


class NormscanInfer(InferTask):
    """Maps where a scan departs from healthy.

    Args:
        run: run folder of the detector.
    """

    def __init__(self, run: str | Path) -> None:
        self.detector = ns.load(run)
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=["anomaly"],
            dimension=3,
            description="Where a scan departs from healthy. Research use, not for diagnosis.",
        )

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Score ``request["image"]``; return the path of the labels and what is told of them.

        Raises:
            ScanError: the image can't be read, or the quality gate refuses it.
        """
        finding = self.detector.predict(str(request["image"]))
        labels = finding.component_labels()
        if labels is None:
            labels = np.zeros(finding.scan.shape, np.int32)
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file:
            nib.save(nib.Nifti1Image(labels.astype(np.uint16), finding.scan.affine), file.name)
        told = json.loads(json.dumps(finding.to_dict()))  # as the answer will be
        names = {f"finding {n}": n for n in range(1, int(labels.max()) + 1)}
        return file.name, {"label_names": names, "normscan": told}
