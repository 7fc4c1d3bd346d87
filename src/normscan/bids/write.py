"""Findings as a BIDS derivatives data set."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normscan.bids.group import write_group
from normscan.bids.names import ANOMALY, build_name, parse_name
from normscan.bids.tables import read_json
from normscan.errors import OutputError
from normscan.io import atomic_path, content_hash, extension, write_map
from normscan.report.overlay import overlay_image
from normscan.report.picture import Picture
from normscan.scan import Scan
from normscan.version import __version__

__all__ = ["Place", "begin_dataset", "write_derivatives", "write_finding", "write_group"]

BIDS_VERSION = "1.10.0"
DESCRIPTION = "dataset_description.json"
# What BIDS has no name for: the whole finding, pictures, the table of all scans.
IGNORED = ("*_finding.json", "sub-*/figures", "group_anomaly.*")
README = """# normscan derivatives

Anomaly maps of normscan: how far each voxel departs from the healthy scans that the detector was
trained on. Research use. Not for diagnosis.

- `*_desc-anomaly_<suffix>.nii.gz`: the anomaly map on the grid of the scan it is named after;
  higher is more anomalous, the unit is the detector's own. It is no image of that contrast.
- `*_desc-anomaly_mask.nii.gz`: the map above the detector's pixel threshold.
- `*_desc-anomaly_finding.json`: score, p-value, decision, components and where they come from.
- `sub-*/figures/`: the map over the scan.
- `group_anomaly.tsv`, `.json`, `.md`: all scans, written by the group level.
"""


class Source(Protocol):
    """A scan whose files are named as in BIDS, such as a row of a cohort."""

    @property
    def paths(self) -> tuple[Path, ...]: ...


class Result(Protocol):
    """What is written of a scan: the part of a finding that this module looks at."""

    scan: Scan
    map: np.ndarray | None
    foreground: np.ndarray | None
    pixel_threshold: float | None
    provenance: dict[str, Any]

    @property
    def segmentation(self) -> np.ndarray | None: ...

    def picture(self) -> Picture: ...

    def to_dict(self) -> dict[str, Any]: ...


class Place:
    """Where the results of a scan lie, named after the scan's first file.

    Args:
        folder: root of the derivatives.
        row: the scan; its files are named as in BIDS.

    Raises:
        OutputError: the first file isn't named as in BIDS.
    """

    def __init__(self, folder: Path, row: Source) -> None:
        first = row.paths[0]
        parsed = parse_name(first.name)
        if parsed is None:
            raise OutputError(
                f"{first}: isn't named as in BIDS (sub-01_T1w.nii.gz), so its results can't be."
            )
        self.entities, self.suffix = {**parsed[0], "desc": ANOMALY}, parsed[1]
        subject = f"sub-{self.entities['sub']}"
        session = [f"ses-{self.entities['ses']}"] if "ses" in self.entities else []
        parent = first.parent.name
        datatype = "anat" if parent.startswith(("sub-", "ses-")) or not parent else parent
        self.folder = folder.joinpath(subject, *session, datatype)
        self.figures = folder / subject / "figures"

    def name(self, suffix: str) -> str:
        """Return the file name of a result, without extension."""
        return build_name(self.entities, suffix)

    @property
    def finding(self) -> Path:
        """The JSON with everything but the arrays; it is written last."""
        return self.folder / f"{self.name('finding')}.json"

    @property
    def figure(self) -> Path:
        """The map over the scan."""
        return self.figures / f"{self.name(self.suffix)}.png"


def write_derivatives(
    folder: str | os.PathLike[str],
    source: str | os.PathLike[str],
    results: Iterable[tuple[Source, Result]],
) -> list[Path]:
    """Write findings as a BIDS derivatives data set.

    For each scan an anomaly map, a segmentation, a sidecar of each, a picture and
    ``*_desc-anomaly_finding.json``, in ``sub-X/[ses-Y/]anat`` (the scan's own data type) under the
    entities of the scan. ``write_group`` makes the table of all.

    Args:
        folder: root of the derivatives, new or written by normscan before.
        source: root of the data set that the scans are from.
        results: scans and their findings, for example of ``Detector.predict_cohort``.

    Returns:
        The ``*_finding.json`` of each scan.

    Raises:
        OutputError: the folder holds something else, or can't be written; a scan whose file isn't
            named as in BIDS.

    Example:
        >>> rows = read_bids("ds000001")  # doctest: +SKIP
        >>> found = [(row, detector.predict(row.load())) for row in rows]  # doctest: +SKIP
        >>> write_derivatives("ds000001/derivatives/normscan", "ds000001", found)
        ... # doctest: +SKIP
    """
    folder, source = Path(folder), Path(source)
    begin_dataset(folder, source)
    return [write_finding(folder, source, row, finding) for row, finding in results]


def begin_dataset(folder: Path, source: Path) -> None:
    """Write ``dataset_description.json``, ``README.md`` and ``.bidsignore``, or check them.

    Raises:
        OutputError: the folder is the source, or holds something that normscan didn't write.
    """
    described = folder / DESCRIPTION
    if folder.is_dir() and any(p for p in folder.iterdir() if p.name[0] != "."):
        tool = _generator(described)
        if tool != "normscan":
            what = f"a data set of {tool}" if tool else "files, but no derivatives of normscan"
            raise OutputError(f"{folder} holds {what}. Choose another folder for the results.")
        return
    # Relative, so that the two can move together and no name of this machine is written.
    raw = Path(os.path.relpath(source.absolute(), folder.absolute())).as_posix()
    description = {
        "Name": f"normscan anomaly maps{_of(source)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "normscan",
                "Version": __version__,
                "Description": "Departures from healthy scans. Research use. Not for diagnosis.",
            }
        ],
        "SourceDatasets": [_source(source)],
        "DatasetLinks": {"raw": raw},
    }
    _write_json(described, description)
    _write_text(folder / "README.md", README)
    _write_text(folder / ".bidsignore", "\n".join(IGNORED) + "\n")


def write_finding(folder: Path, source: Path, row: Source, finding: Result) -> Path:
    """Write the results of a scan, ``*_finding.json`` last; see ``write_derivatives``.

    Raises:
        OutputError: the scan's file isn't named as in BIDS, or the folder can't be written.
    """
    place = Place(folder, row)
    sources = [_uri(path, source) for path in row.paths]
    about = {
        "Sources": sources,
        "SpatialReference": sources[0],
        "Threshold": finding.pixel_threshold,
        "Detector": finding.provenance,
    }
    nifti = finding.scan.dims == 3 or extension(row.paths[0]).startswith(".nii")
    if finding.map is not None:
        name = place.name(place.suffix)
        path = place.folder / f"{name}{'.nii.gz' if nifti else '.tif'}"
        write_map(path, finding.map, finding.scan)
        text = (
            "Anomaly map: how far each voxel departs from healthy scans. Higher is more anomalous."
        )
        sidecar = {"Description": text, "Units": "arbitrary", "SkullStripped": _stripped(finding)}
        _write_json(place.folder / f"{name}.json", sidecar | about)
        drawn = overlay_image(finding.picture(), finding.pixel_threshold)
        with atomic_path(place.figure) as temporary:
            drawn.save(temporary, "PNG")
    segmentation = finding.segmentation
    if segmentation is not None:
        path = place.folder / f"{place.name('mask')}{'.nii.gz' if nifti else '.png'}"
        write_map(path, segmentation.astype("uint8"), finding.scan)
        sidecar = {"Description": "Anomaly map above its threshold.", "Type": "ROI"}
        _write_json(place.folder / f"{place.name('mask')}.json", sidecar | about)
    said = finding.to_dict() | {
        "sources": sources,
        "sources_sha256": [content_hash(path) for path in row.paths],
    }
    _write_json(place.finding, said)
    return place.finding


def is_done(folder: Path, row: Source, detector_hash: str) -> bool:
    """Tell whether a finding of this detector on these very files is there already."""
    try:
        said = read_json(Place(folder, row).finding)
        own = said["provenance"]["detector_sha256"] == detector_hash
        return own and said["sources_sha256"] == [content_hash(path) for path in row.paths]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # none there, or a damaged one, which is written anew


def _stripped(finding: Result) -> bool:
    """Tell whether the map is zero outside of the foreground, as BIDS asks of an image."""
    if finding.map is None or finding.foreground is None or finding.foreground.all():
        return False
    return not finding.map[~finding.foreground].any()


def _uri(path: Path, source: Path) -> str:
    full, base = Path(os.path.abspath(path)), Path(os.path.abspath(source))
    inside = full.is_relative_to(base)
    return f"bids:raw:{full.relative_to(base).as_posix()}" if inside else path.name


def _read_description(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _generator(path: Path) -> str:
    made = _read_description(path).get("GeneratedBy")
    first = made[0] if isinstance(made, list) and made else {}
    name = first.get("Name") if isinstance(first, dict) else None
    return name if isinstance(name, str) else ""


def _of(source: Path) -> str:
    name = _read_description(source / DESCRIPTION).get("Name")
    return f" of {name}" if isinstance(name, str) and name else ""


def _source(source: Path) -> dict[str, str]:
    doi = _read_description(source / DESCRIPTION).get("DatasetDOI")
    return {"DOI": doi} if isinstance(doi, str) and doi else {"URL": "bids:raw:"}


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2) + "\n")
