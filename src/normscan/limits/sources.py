"""Where the healthy scans come from: a cohort, scans in memory, or new subjects of the phantom."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from normscan.cohort import Cohort, CohortRow
from normscan.errors import ArgumentError, CohortError, NormscanError, ScanError, nearest
from normscan.identity import about_files
from normscan.phantom.anatomy import Placer, Places
from normscan.phantom.config import DIAMETERS, KINDS, PhantomConfig
from normscan.phantom.contrast import store
from normscan.phantom.fields import stream
from normscan.phantom.lesions import MAKERS, Lesion
from normscan.phantom.subject import Phantom, Subject
from normscan.planting.sites import BlobSite, Planted, Site, found_foreground, planted
from normscan.scan import Scan

BLOB = "blob"
COUNT = 6  # sizes, where none are given
_LESION, _BLOB = 9, 10  # random streams of a subject, apart from those of the phantom
_ATTEMPTS = 30
_MOST_BYTES, _MOST_VOXELS = 2**20, 2**28  # of a file of settings, and of the images it asks for


class Source(Protocol):
    """Sites by number, the same for the same number.

    Attributes:
        about: what the scans and the lesions are, as JSON values.
        notes: what the reader should know of them.
        root: folder that no message should name.
    """

    about: dict[str, Any]
    notes: list[str]
    root: str

    def site(self, number: int, largest: float) -> Site:
        """Return the site of a number from 0, for lesions of up to a diameter in mm."""
        ...

    def length(self) -> str:
        """Return the unit of lengths, mm or px."""
        ...

    def sizes(self) -> tuple[float, ...]:
        """Return the diameters that suit the scans."""
        ...


def rounded(values: np.ndarray) -> tuple[float, ...]:
    """Return numbers with two significant figures, without repeats."""
    return tuple(sorted({float(f"{v:.2g}") for v in values}))


def _sizes_for(scan: Scan, foreground: np.ndarray | None) -> tuple[float, ...]:
    """From two pixels, or a fiftieth of the anatomy, to a quarter of it."""
    inside = found_foreground(scan) if foreground is None else foreground
    extent = float(inside.sum()) * scan.voxel_volume
    across = (4 * extent / np.pi) ** 0.5 if scan.dims == 2 else (6 * extent / np.pi) ** (1 / 3)
    least = max(0.02 * across, 2 * min(scan.spacing))
    return rounded(np.geomspace(least, max(0.25 * across, 4 * least), COUNT))


Loader = Callable[[], tuple[Scan, np.ndarray | None]]


class ScanSource:
    """Healthy scans of the user's own; lesions are blobs.

    Args:
        scans: subject, name and what reads the scan and its foreground.
        seed: of places and shapes.
        about: of the scans.
        notes: of the scans.
        root: of the files, with the separator at its end.
    """

    def __init__(
        self,
        scans: Sequence[tuple[str, str, Loader]],
        seed: int,
        about: dict[str, Any],
        notes: Sequence[str] = (),
        root: str = "",
    ) -> None:
        self.scans, self.seed, self.about, self.notes = list(scans), seed, about, list(notes)
        self.root = root

    def site(self, number: int, largest: float) -> Site:
        """Return a site; with more sites than scans, every scan has several places."""
        subject, name, load = self.scans[number % len(self.scans)]
        scan, foreground = load()
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(_BLOB, number)))
        return BlobSite(subject, name, scan, foreground, rng, largest)

    def length(self) -> str:
        """Return the unit of lengths: mm, or px where a scan gives no spacing.

        Where scans differ, those without a spacing stand with pixels of 1 mm, and a note says so.
        """
        found = set()
        for _, _, load in self.scans[:10]:
            with contextlib.suppress(NormscanError):
                found.add(load()[0].measured)
        if found == {True, False}:
            self.notes.append("Some scans give no spacing: their pixels count as 1 mm.")
        return "px" if found == {False} else "mm"

    def sizes(self) -> tuple[float, ...]:
        """Return diameters from two pixels to a quarter of the first scan's anatomy."""
        return _sizes_for(*self.scans[0][2]())


def scan_source(scans: Cohort | Sequence[Scan], split: str, seed: int) -> ScanSource:
    """Return the source of a cohort's held-out healthy scans, or of scans in memory.

    Args:
        scans: a cohort, or scans that are all healthy.
        split: part of the cohort: test, or val where test has no healthy scan.
        seed: of the order of the scans, the places and the shapes.

    Raises:
        CohortError: no healthy scan in the part.
        ArgumentError: a part that trains, or no scans.
    """
    if not isinstance(scans, Cohort):
        held: list[tuple[str, str, Loader]] = [
            (f"scan {i + 1}", f"scan {i + 1}", lambda scan=scan: (scan, None))  # type: ignore[misc]
            for i, scan in enumerate(scans)
        ]
        if not held:
            raise ArgumentError("no scans were given to plant lesions into.")
        return ScanSource(held, seed, {"scans": len(held), "kind": BLOB})
    cohort = scans
    if split not in ("test", "val"):
        raise ArgumentError(f"split is '{split}'; lesions are planted into test or val scans.")
    notes = []
    rows = [row for row in cohort.part(split) if row.label == 0]
    if not rows and split == "test":
        split, rows = "val", [row for row in cohort.part("val") if row.label == 0]
    if not rows:
        raise CohortError("the cohort has no healthy scans in test or val to plant lesions into.")
    if split == "val":
        notes.append(
            "The healthy scans are those that set the threshold: their flag rate is the wanted one "
            "by construction. Healthy test scans would show the true one."
        )
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(rows))
    seen: dict[str, int] = {}
    ranked: list[tuple[int, int, CohortRow]] = []
    for place in order:  # as many subjects as there are, before any comes twice
        seen[rows[place].subject] = turn = seen.get(rows[place].subject, -1) + 1
        ranked.append((turn, len(ranked), rows[place]))
    told = "\n".join(f"{row.scan} {row.key()}" for row in rows)
    names = hashlib.sha256(told.encode()).hexdigest()[:16]
    about = {"split": split, "scans": len(rows), "subjects": len(seen), "names": names}
    loaders = [(row.subject, row.scan, _loader(row)) for *_, row in sorted(ranked, key=_turn)]
    return ScanSource(loaders, seed, {**about, "kind": BLOB}, notes, f"{cohort.root}{os.sep}")


def _turn(entry: tuple[int, int, CohortRow]) -> tuple[int, int]:
    return entry[:2]


def _loader(row: CohortRow) -> Loader:
    def load() -> tuple[Scan, np.ndarray | None]:
        try:
            scan = row.load()
            return scan, row.load_foreground(scan)
        except NormscanError as error:
            raise ScanError(about_files(str(error), row.called())) from error
        except OSError as error:
            raise ScanError(f"{row.scan}: can't be read ({error.strerror}).") from error

    return load


# ------------------------------------------------------------------ the phantom


class PhantomSource:
    """New subjects of a simulated cohort, with the phantom's own lesions or with blobs.

    They are drawn with the cohort's settings and seed, beyond its last subject: none of them
    trained or set a threshold.

    Args:
        folder: of the simulated cohort, or its ``phantom.json``.
        kind: blob, wmh, tumour, infarct or bleed.

    Raises:
        CohortError: no simulated cohort there.
        ArgumentError: another kind.
    """

    def __init__(self, folder: str | os.PathLike[str], kind: str) -> None:
        known = (BLOB, *KINDS)
        if kind not in known:
            raise ArgumentError(
                f"there is no lesion of the kind '{kind}'.{nearest(kind, known)} "
                f"Choose from {', '.join(known)}."
            )
        config = read_config(Path(folder))
        self.first = config.healthy + config.lesioned
        # One lesion, and one slice, for each subject: what is found is then this lesion.
        self.config = replace(config, slices=1, wmh_count=(1, 1), min_area=0.0)
        self.kind = kind
        self.about: dict[str, Any] = {"simulated": True, "kind": kind, "phantom": config.as_dict()}
        self.root = ""
        self.notes = ["The scans are SIMULATED: the limits say nothing of patients."]

    def length(self) -> str:
        """Return the unit of lengths, mm."""
        return "mm"

    def sizes(self) -> tuple[float, ...]:
        """Return diameters from half of the kind's smallest to its largest."""
        if self.kind == BLOB:
            pair = Subject(self.config, self.first).render()
            return _sizes_for(as_scan(pair, self.config), pair.brain)
        low, high = DIAMETERS[self.kind]
        return rounded(np.geomspace(max(3.0, 0.5 * low), high, COUNT))

    def site(self, number: int, largest: float) -> Site:
        """Return the site in a new subject."""
        index = self.first + number
        if self.kind != BLOB:
            return PhantomSite(self.config, index, self.kind, largest)
        pair = Subject(self.config, index).render()
        name, rng = _name(index), stream(self.config.seed, index, _BLOB)
        return BlobSite(name, name, as_scan(pair, self.config), pair.brain, rng, largest)


def read_config(path: Path) -> PhantomConfig:
    """Read the settings of a simulated cohort from its folder, its table or ``phantom.json``.

    Raises:
        CohortError: no such file, or settings that can't be.
    """
    if path.is_dir():
        path = path / "phantom.json"
    elif path.name != "phantom.json":
        path = path.parent / "phantom.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("too long")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not values.pop("simulated"):
            raise ValueError("not simulated")
        config = PhantomConfig(**values)
        if math.prod(config.size or (1,)) > _MOST_VOXELS:
            raise ValueError("too large")
        return config
    except ArgumentError as error:
        raise CohortError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CohortError(
            f"{path}: holds no settings of a simulated cohort ({type(error).__name__}). Name a "
            "folder that `normscan phantom` made."
        ) from error


def as_scan(pair: Phantom, config: PhantomConfig) -> Scan:
    """Return an image of the phantom as it would be read from the file of a cohort."""
    data = np.stack([store(pair.image[m]) for m in config.modalities])
    return Scan(data.astype(np.float32), pair.grid.affine, config.modalities, dtype="uint16")


def _name(index: int) -> str:
    return f"sub-{index + 1:03d}"


@dataclass(frozen=True, eq=False)
class _Chosen(Places):
    """Candidates that keep the one that was chosen."""

    kept: list[np.ndarray] = field(default_factory=list)

    def choose(self, rng: np.random.Generator, weights: np.ndarray) -> int | None:
        index = super().choose(rng, weights)
        if index is not None:
            self.kept.append(self.points[index])
        return index


class _Only(Places):
    """A single candidate, taken whatever its weight."""

    def choose(self, rng: np.random.Generator, weights: np.ndarray) -> int | None:
        rng.random()  # what a choice among many draws
        return 0


@dataclass(frozen=True, eq=False)
class SamePlace(Placer):
    """Puts a subject's lesions of all sizes where the first of them went.

    In a slice the centre keeps its distance from the plane in parts of the size, so that each is
    cut at the same part of its height.
    """

    kept: list[np.ndarray] = field(default_factory=list)
    reaches: list[float] = field(default_factory=list)

    def places(self, rng: np.random.Generator, reach: float, plane: int | None = None) -> Places:
        """Return the candidates of the first call, and afterwards the one that was chosen."""
        found = super().places(rng, reach, plane)
        if not self.kept:
            self.reaches[:] = [reach]
            return _Chosen(**vars(found), kept=self.kept)
        point = self.kept[0].copy()
        if self.planes:
            middle = float(np.mean(self.planes)) if plane is None else self.planes[plane]
            point[2] = middle + (point[2] - middle) * reach / self.reaches[0]
        points, anatomy = point[None], self.anatomy
        return _Only(
            points,
            anatomy.tissue(points),
            anatomy.depth(points),
            anatomy.ventricle_distance(points),
        )


class PhantomSite:
    """A subject of the phantom with its own lesion, of any size and contrast at one place.

    The contrast is the phantom's: the part of the lesion's usual intensity change.

    Args:
        config: settings of the cohort.
        index: of the subject.
        kind: of the lesion.
        largest: diameter in mm for which the place must have room.

    Raises:
        ScanError: there is no such place in the subject.
    """

    def __init__(self, config: PhantomConfig, index: int, kind: str, largest: float) -> None:
        self.config, self.index, self.kind = config, index, kind
        self.patient = Subject(config, index)
        pair = self.patient.render()
        self.twin = as_scan(pair, config)
        self.brain = pair.brain
        self.foreground: np.ndarray | None = pair.brain
        self.subject = self.name = _name(index)
        planes = tuple(float(g.affine[2, 3]) for g in self.patient.grids if config.dims == 2)
        for self.attempt in range(_ATTEMPTS):
            self.placer = SamePlace(self.patient.anatomy, planes, config.heights)
            lesion = self._make(largest)
            if lesion is not None and self.patient._visible(lesion):
                return
        raise ScanError(
            f"{self.name}: no place for a {kind} of {largest:g} mm. Leave out that size."
        )

    def _make(self, size: float) -> Lesion | None:
        rng = stream(self.config.seed, self.index, _LESION, self.attempt)
        return MAKERS[self.kind](rng, self.placer, replace(self.config, diameter=(size, size)))

    def grow(self, size: float) -> Callable[[float], Planted]:
        """Return what gives the lesion of a diameter in mm at any contrast."""
        lesion = self._make(size)
        if lesion is None:
            raise ScanError(f"{self.name}: no place for a {self.kind} of {size:g} mm.")
        row = lesion.properties[0]
        centre = np.array([row["x_mm"], row["y_mm"], row["z_mm"]])

        def at(contrast: float) -> Planted:
            self.patient.lesion = lesion
            self.patient.config = replace(self.config, contrast=contrast)
            pair = self.patient.render()
            scan = as_scan(pair, self.config)
            return planted(self.twin, scan, pair.fraction, self.brain, centre)

        return at
