"""A detector as a MONAI bundle: a folder that ``python -m monai.bundle run`` knows how to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from normscan.detector import Detector
from normscan.detector.storage import write_state
from normscan.detector.unnamed import nameless
from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.io.lock import one_writer
from normscan.io.values import write_json
from normscan.training.folder import DIVISION
from normscan.version import __version__

INFERENCE: dict[str, Any] = {
    "imports": ["$import normscan", "$import normscan.export.bundle"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/scans'",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "auto",
    "detector": "$normscan.load(@bundle_root + '/models/detector', @device)",
    "network_def": "$@detector.method",
    "run": ["$normscan.export.bundle.infer(@detector, @dataset_dir, @output_dir)"],
}
SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


def write_bundle(detector: Detector, folder: Path) -> None:
    """Write a fitted detector as a new folder with the parts of a bundle.

    Raises:
        OutputError: it was not fitted, or the folder is there and isn't empty.
    """
    if detector.method is None:
        raise OutputError("this detector was not fitted, so there is nothing to export.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists. Choose another folder with --out, or remove it.")
    stored = folder / "models" / "detector"
    for place in (folder / "configs", folder / "docs", stored):
        place.mkdir(parents=True, exist_ok=True)
    write_state(detector, stored)
    if detector.division is not None:
        nameless(detector.division).write(stored / DIVISION)
    (folder / "docs" / "README.md").write_bytes((stored / "card.md").read_bytes())
    write_json(folder / "configs" / "inference.json", INFERENCE)
    write_json(folder / "configs" / "metadata.json", metadata(detector))


def metadata(detector: Detector) -> dict[str, Any]:
    """Return what the bundle says of itself, as MONAI's schema has it."""
    from importlib.metadata import version

    card, shape = detector.card, [detector.preprocess.size] * detector.arguments["dims"]
    image = {
        "type": "image", "format": "magnitude", "spatial_shape": shape, "dtype": "float32",
        "is_patch_data": detector.patch is not None,
    }  # fmt: skip
    channels = detector.channels
    given = {"num_channels": len(channels), "value_range": [0, detector.preprocess.limit]}
    names = {str(n): name for n, name in enumerate(channels)}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by normscan"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"normscan": __version__},
        "name": f"{card.id} detector",
        "task": "anomaly detection",
        "description": f"{card.summary} ({card.paper}; preset {detector.preset}).",
        "authors": card.paper,
        "copyright": "weights: as the training data allow; code: Apache-2.0",
        "intended_use": "Research use. Not for diagnosis, not a medical device.",
        "network_data_format": {
            "inputs": {"image": {**image, **given, "channel_def": names}},
            "outputs": {
                "pred": {
                    **image, "num_channels": 1, "value_range": [0, 1],
                    "channel_def": {"0": "anomaly map; higher is more anomalous, without an upper end"},
                }
            },
        },
    }  # fmt: skip


def infer(
    detector: Detector, scans: str | os.PathLike[str], out: str | os.PathLike[str]
) -> dict[str, Any]:
    """Score the files of a folder and write what was found; a bad scan is named and the rest goes on.

    Returns:
        The score of each scan by the name of its file, or the reason why there is none.

    Raises:
        ArgumentError: no such folder, or an empty one.
    """
    files = sorted(path for path in Path(scans).glob("*") if not path.name.startswith("."))
    if not files:
        raise ArgumentError(f"{scans}: no scans there. Name their folder with --dataset_dir.")
    folder = Path(out)
    said: dict[str, float | str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with one_writer(folder):
        for path in files:
            try:
                finding = detector.predict(path)
                finding.save(folder)
                said[path.name] = finding.score
            except NormscanError as error:
                said[path.name] = str(error)
        write_json(folder / "scores.json", said)
    return said
