"""From a prepared scan to the samples that a method trains on: the whole of it, or its slices."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from normscan.cohort.division import content_of
from normscan.cohort.row import Opened
from normscan.errors import NormscanError, ScanError
from normscan.preprocess.cache import describe, enabled
from normscan.preprocess.kept import kept_arrays
from normscan.preprocess.pipeline import Prepared, Preprocess

if TYPE_CHECKING:
    from normscan.cohort import CohortRow
    from normscan.scan import Scan

# A slice with less foreground than this share of its grid shows no anatomy.
EMPTY_SLICE = 0.01


class Sample(NamedTuple):
    """Attributes: image (C, *size), foreground (*size), place in the volume from 0 to 1, ``beside``.

    ``beside`` are (C, *size) by name: the companions, and the ``lesion`` where it was asked for.
    ``further`` are the case's further images by name, the same for all slices of a volume.
    """

    image: np.ndarray
    foreground: np.ndarray
    position: float
    beside: dict[str, np.ndarray]
    further: dict[str, np.ndarray] = {}  # noqa: RUF012 - nobody changes it


def split_slices(prepared: Prepared) -> list[tuple[int, float]]:
    """Return index and position (0 to 1) of the slices of a volume that hold enough foreground.

    A volume with none keeps the slice with the most.
    """
    share = prepared.foreground.mean(axis=(0, 1))
    n = len(share)
    kept = np.flatnonzero(share >= EMPTY_SLICE)
    if kept.size == 0:
        kept = np.array([int(share.argmax())])
    return [(int(k), k / max(1, n - 1)) for k in kept]


@dataclass(frozen=True)
class Preparation:
    """Prepares scans for a detector, in any process.

    Attributes:
        preprocess: the detector's.
        dims: number of spatial axes that the method works on.
        channels: that it was, or is to be, trained on.
        cache: keep the results of steps on disk.
        companions: names of what a row must have beside its scan.
        targets: number of channels of the target; None for any.
        filled: channels that are left out of every scan, or may be missing: 0 stands for them.
        further: name and number of channels of each further image of a case; None for any.
    """

    preprocess: Preprocess
    dims: int
    channels: tuple[str, ...]
    cache: bool = True
    companions: tuple[str, ...] = ()
    targets: int | None = None
    filled: tuple[str, ...] = ()
    further: tuple[tuple[str, int], ...] | None = None

    @property
    def key(self) -> str:
        """What the prepared scan depends on beside the scan, as text."""
        about = [self.preprocess.to_dict(), self.dims, self.channels, self.targets, self.filled]
        about += [self.further] if self.further else []
        return json.dumps(about, sort_keys=True, default=str)

    def about(self, row: CohortRow) -> list[Any]:
        """Return what the prepared scan depends on, as plain values to find it by.

        Empty where it is not to be kept, or a file can't be read.
        """
        if not (self.cache and enabled()):
            return []
        beside = {"target": row.targets, "structures": [row.structures] if row.structures else []}
        beside["further"] = tuple(row.further.values())
        paths = [[row.foreground] if row.foreground else [], *(beside[n] for n in self.companions)]
        files = [row.key(), *(content_of(some) if some else "none" for some in paths)]
        steps = describe(self.preprocess.steps)
        names = [row.channels, row.target_channels, row.missing, self.companions]
        names += [tuple(row.further)] if "further" in self.companions else []
        return [self.key, steps, names, files] if all(files) else []

    def __call__(self, row: CohortRow) -> Prepared:
        """Read and prepare a scan of a cohort and what must stand beside it.

        Raises:
            ScanError: as ``of``; nothing stands beside it.
        """
        scan = row.load()
        beside: dict[str, Any] = {}
        for name in self.companions:
            if name == "further":
                beside[name] = self._all_further(row, scan)
                continue
            found = row.load_companion(name, scan)
            if found is None:
                raise ScanError(f"{scan.name}: it has no {name}. Fill its column '{name}'.")
            beside[name] = found
        return self.of(scan, row.load_foreground(scan), beside)

    def of(
        self,
        scan: Scan,
        foreground: np.ndarray | None = None,
        companions: Mapping[str, Any] | None = None,
    ) -> Prepared:
        """Prepare a scan.

        Args:
            scan: as it was read.
            foreground: (*scan.shape) bool; computed if not given.
            companions: (C, *scan.shape) by name; under ``further`` the further images by name.

        Raises:
            ScanError: as ``Preprocess``; another number of channels than the detector's, or the
                same ones in another order.
        """
        if self.filled:
            scan = self._kept(scan)
        prepared = self.preprocess(scan, self.dims or scan.dims, foreground, self.cache)
        if self.filled:
            prepared = self._filled(prepared)
        if len(prepared.image) != len(self.channels):
            told = set(scan.channels) & set(self.channels)
            missing = [name for name in self.channels if name not in told] if told else []
            raise ScanError(
                f"{scan.name}: it has {len(prepared.image)} channels ({', '.join(scan.channels)}), "
                f"the detector was trained on {len(self.channels)} ({', '.join(self.channels)})."
                + (f" Missing: {', '.join(missing)}; none is filled in." if missing else "")
            )
        same = sorted(scan.channels) == sorted(self.channels)
        if same and scan.channels != self.channels and len(scan.channels) == len(prepared.image):
            raise ScanError(
                f"{scan.name}: its channels are in the order {', '.join(scan.channels)}, those of the "
                f"training scans in the order {', '.join(self.channels)}. Give them in that order."
            )
        beside = {
            name: self._beside(name, array, prepared)
            for name, array in (companions or {}).items()
            if name != "further"
        }
        images: Mapping[str, Scan] = (companions or {}).get("further", {})
        further = {name: self._apart(name, image) for name, image in images.items()}
        return replace(prepared, companions=beside, further=further)

    def _all_further(self, row: CohortRow, scan: Scan) -> dict[str, Scan]:
        """Read the further images of a case, of which none may lack in training."""
        found = row.load_further()
        names = [name for name, _ in self.further or ()] or [*row.further, *row.lacking]
        if lacking := [name for name in names if name not in found]:
            raise ScanError(
                f"{scan.name}: its image {' and '.join(lacking)} is missing. Fill the column "
                f"'further_{lacking[0]}', or drop the case."
            )
        return {name: found[name] for name in names}

    def _apart(self, name: str, image: Scan) -> Prepared:
        """Bring a further image onto a grid of its own, of the same size, scaled by itself.

        Steps are for the scan alone; so is the range of ``file``, for which its own values stand.
        """
        if self.dims == 2 and image.dims == 3:
            raise ScanError(
                f"{image.name}: the image {name} is a volume, and this detector works on pictures. "
                "Name the volume in 'path', whose slices it takes, and the picture in 'further_...'."
            )
        scaling = "minmax" if self.preprocess.scaling == "file" else self.preprocess.scaling
        alone = replace(self.preprocess, steps=(), scaling=scaling, colour="keep")
        prepared = alone(image, image.dims, cache=False)
        channels = dict(self.further or ()).get(name, len(prepared.image))
        values = prepared.image
        if channels == 1 and image.is_rgb:
            values = values.mean(0, keepdims=True)
        elif channels == 3 and len(values) == 1:  # a reader folds three equal colours into one
            values = np.repeat(values, 3, axis=0)
        if len(values) != channels:
            raise ScanError(
                f"{image.name}: the image {name} has {len(values)} channels, those of the training "
                f"cases {channels}."
            )
        return replace(prepared, image=values, scan=image)

    def _kept(self, scan: Scan) -> Scan:
        """Return a scan without the channels that are filled in."""
        kept = [name for name in self.channels if name not in self.filled]
        if len(scan.channels) == len(kept) and not set(scan.channels) & set(self.filled):
            return scan
        if missing := [name for name in kept if name not in scan.channels]:
            raise ScanError(
                f"{scan.name}: it has the channels {', '.join(scan.channels)}. Missing: "
                f"{', '.join(missing)}; only {', '.join(self.filled)} may be."
            )
        places = [scan.channels.index(name) for name in kept]
        return scan.with_data(scan.data[places], tuple(kept))

    def _filled(self, prepared: Prepared) -> Prepared:
        """Return a prepared scan with 0 in the channels that were left out."""
        kept = [i for i, name in enumerate(self.channels) if name not in self.filled]
        if len(prepared.image) != len(kept):
            return prepared
        image = np.zeros((len(self.channels), *prepared.image.shape[1:]), np.float32)
        image[kept] = prepared.image
        return replace(prepared, image=image)

    def _beside(self, name: str, array: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Bring a companion onto the grid of its scan; targets are scaled as the scan was.

        Labels stay whole numbers. Steps that change intensities act on the scan alone.
        """
        if name == "structures":
            return prepared.labels_onto(array)
        if self.targets is not None and len(array) != self.targets:
            raise ScanError(
                f"a {name} with {len(array)} channels; the detector learns from {self.targets}."
            )
        low = array.min(axis=tuple(range(1, array.ndim)), keepdims=True)
        moved = prepared.onto(array - low) + low
        return self.preprocess.scale(moved, prepared.foreground, self.slices(prepared))

    def slices(self, prepared: Prepared) -> bool:
        """Whether the scan is a volume that is cut into slices."""
        return self.dims == 2 and len(prepared.grid.shape) == 3


@dataclass(frozen=True)
class Sampling:
    """Prepares a scan of a cohort and cuts it into samples; what is wrong with it is handed back.

    Attributes:
        prepare: reads and prepares a scan.
        slices: whether a prepared volume is cut into slices.
        lesions: bring the lesion masks along; where there is none, an empty one.
    """

    prepare: Callable[[CohortRow], Prepared]
    slices: Callable[[Prepared], bool]
    lesions: bool = False

    def __call__(self, row: CohortRow) -> list[Sample] | NormscanError | OSError:
        """Return the samples of a scan, or why there are none."""
        try:
            prepare = self.prepare
            about = prepare.about(row) if isinstance(prepare, Preparation) else []
            if self.lesions or not about:
                return self._made(row)
            return _unpacked(kept_arrays(about, lambda: _packed(self._made(row))))
        except (NormscanError, OSError) as error:
            return error

    def _made(self, row: CohortRow) -> list[Sample]:
        row = Opened.of(row) if self.lesions and not isinstance(row, Opened) else row
        prepared = self.prepare(row)
        mask = row.load_mask(row.load()) if self.lesions else None
        image, foreground = prepared.image, prepared.foreground
        beside = dict(prepared.companions)
        further = {name: one.image for name, one in prepared.further.items()}
        if self.lesions:
            lesion = np.zeros(foreground.shape, bool) if mask is None else prepared.onward(mask)
            beside["lesion"] = lesion[None]
        if not self.slices(prepared):
            return [Sample(image, foreground, 0.5, beside, further)]
        return [
            Sample(
                image[..., k], foreground[..., k], position,
                {name: array[..., k] for name, array in beside.items()}, further,
            )
            for k, position in split_slices(prepared)
        ]  # fmt: skip


BESIDE, FURTHER = "beside_", "further_"


def _packed(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    beside = {BESIDE + name: np.stack([s.beside[name] for s in samples]) for name in samples[0][3]}
    named = {
        name: np.stack([getattr(s, name) for s in samples])
        for name in ("image", "foreground", "position")
    }
    return named | beside | {FURTHER + name: a for name, a in samples[0].further.items()}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> list[Sample]:
    beside = {k.removeprefix(BESIDE): a for k, a in arrays.items() if k.startswith(BESIDE)}
    further = {k.removeprefix(FURTHER): a for k, a in arrays.items() if k.startswith(FURTHER)}
    named = zip(arrays["image"], arrays["foreground"], arrays["position"], strict=True)
    return [
        Sample(
            image, foreground, float(position), {name: a[i] for name, a in beside.items()}, further
        )
        for i, (image, foreground, position) in enumerate(named)
    ]


@dataclass
class Aside:
    """What else is to be found out about some scans while they are open.

    Attributes:
        look: takes a row; in any process.
        scans: ids of those to look at.
        found: by id.
    """

    look: Callable[[CohortRow], Any]
    scans: frozenset[str]
    found: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Looking:
    """Samples a scan and looks at it, with one reading for both.

    Attributes:
        sampling: cuts it into samples.
        look: see ``Aside``.
    """

    sampling: Sampling
    look: Callable[[CohortRow], Any] | None = None

    def __call__(self, item: tuple[CohortRow, bool]) -> tuple[Any, Any]:
        """Return the samples of a row or why there are none, and what was seen if it is to be."""
        row, wanted = item
        if self.look is None or not wanted:
            return self.sampling(row), None
        row = Opened.of(row)
        return self.sampling(row), self.look(row)
