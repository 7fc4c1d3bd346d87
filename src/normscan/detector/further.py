"""Further images of a case, each of its own shape: read, missed, and their maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normscan.detector.predictor import Stitched
from normscan.detector.state import State
from normscan.errors import ArgumentError, ScanError, nearest
from normscan.io import map_suffix, read_further, write_map
from normscan.io.companions import Given
from normscan.methods.uses import Use
from normscan.preprocess import Prepared
from normscan.scan import Scan


@dataclass(frozen=True)
class FurtherMap:
    """The map of a further image.

    Attributes:
        scan: the image as it came in.
        map: (*scan.shape) float32, higher is more anomalous.
    """

    scan: Scan
    map: np.ndarray

    def save(self, folder: Path, case: str, image: str) -> Path:
        """Write the map under the names of its case and of the image."""
        of = "".join(c if c.isalnum() or c in "-+." else "-" for c in image)
        return write_map(folder / f"{case}_{of}_map{map_suffix(self.scan)}", self.map, self.scan)

    def to_dict(self) -> dict[str, Any]:
        """Return its peak as JSON knows it: the value, and its index in the image's array."""
        peak = np.unravel_index(int(self.map.argmax()), self.map.shape)
        return {"peak": float(self.map[peak]), "peak_index": [int(i) for i in peak]}


def given_images(state: State, scan: Scan, given: Mapping[str, Given], use: Use) -> dict[str, Scan]:
    """Read the further images of a case in the order in which the method knows them.

    Raises:
        ArgumentError: one of a name that it doesn't know.
        ScanError: one can't be read, or is missing and needed.
    """
    known = [name for name, _ in state.further]
    if unknown := set(given) - set(known):
        raise ArgumentError(
            f"this detector knows no further image '{min(unknown)}'.{nearest(min(unknown), known)} "
            f"It was trained with {', '.join(known)}."
        )
    lacking = [name for name in known if name not in given]
    if lacking and use.prediction == "needed":
        raise ScanError(
            f"{scan.name}: this detector looks at {' and '.join(known)} of a case too, and "
            f"{' and '.join(lacking)} is missing. Fill the column 'further_{lacking[0]}' of the "
            f"cohort, or give --further {lacking[0]}=FILE (companions in Python)."
        )
    return read_further({name: given[name] for name in known if name in given})


def missing_note(state: State, prepared: Prepared) -> tuple[str, ...]:
    """Say which further images a case doesn't have, though the method looks at them."""
    lacking = [name for name, _ in state.further if name not in prepared.further]
    if not lacking:
        return ()
    what = f"The image {' and '.join(lacking)} of this case is missing"
    return (f"{what}: its score and maps rest on what is there.",)


def unseen_note(scan: Scan, names: Sequence[str]) -> Scan:
    """Return a scan whose notes say which images of its case weren't looked at."""
    said = f"Its image {', '.join(names)} wasn't looked at: this detector sees one of a case."
    return scan.with_note(said)


def mean_maps(members: Sequence[Stitched]) -> dict[str, np.ndarray]:
    """Return the means of the members' maps of further images."""
    return {
        name: np.mean([member.further[name] for member in members], axis=0)
        for name in members[0].further
    }


def maps_of(stitched: Stitched, prepared: Prepared) -> dict[str, FurtherMap]:
    """Return the maps of further images on their own grids."""
    found = {}
    for name, array in stitched.further.items():
        image = prepared.further[name]
        assert image.scan is not None
        found[name] = FurtherMap(image.scan, image.back(array[None])[0])
    return found
