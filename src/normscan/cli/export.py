"""The command ``normscan export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(run: str, to: Literal["onnx", "monai"] = "onnx", out: str | None = None) -> None:
    """Write a trained detector in a form that others run: normscan export RUN --to onnx.

    Args:
        run: run folder of the detector.
        to: onnx, one file with network, preprocessing and threshold, which `normscan predict`
            runs by onnxruntime without torch; monai, a folder that `python -m monai.bundle run` runs.
        out: file or folder; model.onnx or bundle in the run folder by default.
    """
    from normscan.detector import load
    from normscan.export import write_bundle, write_onnx

    if to == "monai":
        folder = Path(out) if out else Path(run) / "bundle"
        write_bundle(load(run, "cpu"), folder)
        print(
            f"bundle: {folder}\nnext: python -m monai.bundle run --config_file {folder}/configs/"
            f"inference.json --bundle_root {folder} --dataset_dir SCANS --output_dir OUT"
        )
        return
    path = Path(out) if out else Path(run) / "model.onnx"
    signature = write_onnx(load(run, "cpu"), path)
    size = " x ".join(map(str, signature.size)) or "any size"
    batch = "one at a time" if signature.batch else "any number at once"
    print(f"graph: {path} ({path.stat().st_size / 1e6:.1f} MB), images of {size}, {batch}")
    print(f"next: normscan predict {path} SCAN...")
