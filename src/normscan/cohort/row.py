"""One scan of a cohort: whose it is, where its files lie, and how they are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from normscan.cohort.table import COLUMNS, FURTHER, holds_files
from normscan.errors import NormscanError, ScanError
from normscan.io import MaskReport, content_hash, read_companion, read_mask, read_scan
from normscan.scan import Scan

T = TypeVar("T")


@dataclass(frozen=True)
class CohortRow:
    """One scan of a cohort.

    Attributes:
        scan: unique name, fit for a file name.
        subject: who it is of.
        paths: its file, or one file per channel.
        channels: names of the channels, or an empty tuple where the file names them.
        label: 0 healthy, 1 anomalous, None unknown.
        mask: lesion mask, or None.
        foreground: mask of the anatomy, or None.
        split: train, val, test, extra or an empty string.
        site: where it was taken, or an empty string.
        columns: the free columns (age, sex, scanner, ...).
        missing: channels of the cohort that this scan has no file for.
        targets: further scans of the subject, one file per channel; empty where one lacks.
        target_channels: their names, or an empty tuple where the file names them.
        structures: label map of the anatomy, or None.
        further: files of further images of the case, each of its own shape, by name.
        lacking: names of further images of the cohort that this case doesn't have.
    """

    scan: str
    subject: str
    paths: tuple[Path, ...]
    channels: tuple[str, ...] = ()
    label: int | None = None
    mask: Path | None = None
    foreground: Path | None = None
    split: str = ""
    site: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    targets: tuple[Path, ...] = ()
    target_channels: tuple[str, ...] = ()
    structures: Path | None = None
    further: Mapping[str, Path] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()

    @classmethod
    def from_cells(cls, cells: Mapping[Any, Any], root: Path, channels: Sequence[str]) -> CohortRow:
        """Return the scan of a row of a table that was checked.

        Args:
            cells: of the row, by column.
            root: folder of relative paths.
            channels: that have files of their own, ``path_<channel>``.
        """
        named = {c: cells[f"path_{c}"] for c in channels if cells[f"path_{c}"]}
        files = list(named.values()) or [cells.get("path", "")]
        targets = {k[7:]: v for k, v in cells.items() if k == "target" or k.startswith("target_")}
        targets = targets if all(targets.values()) else {}
        further = {k[len(FURTHER) :]: v for k, v in cells.items() if k.startswith(FURTHER)}
        label = cells["label"]
        return cls(
            scan=cells["scan"],
            subject=cells["subject"],
            paths=tuple(root / p for p in files),
            channels=tuple(named),
            label=int(label) if label == 0 or label == 1 else None,
            mask=root / cells["mask"] if cells["mask"] else None,
            foreground=root / cells["foreground"] if cells["foreground"] else None,
            split=cells["split"],
            site=cells["site"],
            columns={k: v for k, v in cells.items() if k not in COLUMNS and not holds_files(k)},
            missing=tuple(c for c in channels if named and c not in named),
            targets=tuple(root / p for p in targets.values()),
            target_channels=tuple(filter(None, targets)),
            structures=root / cells["structures"] if cells.get("structures") else None,
            further={name: root / path for name, path in further.items() if path},
            lacking=tuple(name for name, path in further.items() if not path),
        )

    @property
    def companions(self) -> tuple[str, ...]:
        """What stands beside the scan on its grid, by name."""
        there = {"target": self.targets, "structures": self.structures}
        return tuple(name for name, value in there.items() if value)

    def has(self, name: str) -> bool:
        """Whether something of this name stands beside the scan; see ``normscan.io.COMPANIONS``."""
        return bool(self.further) if name == "further" else name in self.companions

    def called(self) -> dict[Path, str]:
        """What its files are called in results, which travel: file names may be those of people."""
        beside = {self.mask: "its mask", self.foreground: "its foreground mask"}
        beside |= {self.structures: "its structures"} | dict.fromkeys(self.targets, "its target")
        beside |= {path: f"its {name}" for name, path in self.further.items()}
        files = {path: name for path, name in beside.items() if path is not None}
        return files | dict.fromkeys(self.paths, self.scan)

    def content(self) -> list[str]:
        """Return the SHA-256 of each of its files, see ``normscan.io.content_hash``.

        Raises:
            ScanError: a file can't be read.
        """
        return [content_hash(path) for path in self.paths]

    def key(self) -> str:
        """Return the hashes of its files, parted by spaces; an empty string if one can't be read."""
        try:
            return " ".join(self.content())
        except ScanError:
            return ""

    def load(self) -> Scan:
        """Read the scan.

        Raises:
            ScanError: as ``read_scan`` does; a channel without a file.
        """
        if self.missing:
            raise ScanError(
                f"{self.paths[0]}: the scan '{self.scan}' has no file for the channel "
                f"{' and '.join(self.missing)}. Fill its path_{self.missing[0]}, or drop the scan."
            )
        if self.channels:
            return read_scan(self.paths, channels=self.channels)
        return read_scan(self.paths if len(self.paths) > 1 else self.paths[0])

    def load_mask(
        self, scan: Scan, threshold: float = 0.5, report: MaskReport | None = None
    ) -> np.ndarray | None:
        """Read the lesion mask as booleans on the grid of the scan.

        A healthy scan without a mask has no lesion: all False. None where nobody knows.

        Args:
            scan: whose grid it is.
            threshold: of a probability map.
            report: counts what the mask was taken for.

        Raises:
            ScanError: as ``read_mask`` does.
        """
        if self.mask is not None:
            return read_mask(self.mask, scan, threshold, report)
        return np.zeros(scan.shape, dtype=bool) if self.label == 0 else None

    def load_companion(self, name: str, scan: Scan) -> np.ndarray | None:
        """Read what stands beside the scan, (C, *scan.shape), or None where there is nothing.

        Raises:
            ScanError: as ``read_companion`` does, for example another grid.
        """
        if name not in self.companions:
            return None
        if name == "structures" and self.structures is not None:
            return read_companion(name, self.structures, scan)
        several = len(self.targets) > 1 or bool(self.target_channels)
        given = self.targets if several else self.targets[0]
        return read_companion(name, given, scan, self.target_channels or None)

    def load_further(self) -> dict[str, Scan]:
        """Read the further images of the case that there are, by name.

        Raises:
            ScanError: as ``read_scan`` does.
        """
        return {name: read_scan(path) for name, path in self.further.items()}

    def load_foreground(self, scan: Scan) -> np.ndarray | None:
        """Read the foreground mask as booleans, or None where there is no file.

        Raises:
            ScanError: as ``read_mask`` does; a mask without any foreground.
        """
        if self.foreground is None:
            return None
        mask = read_mask(self.foreground, scan)
        if not mask.any():
            raise ScanError(f"{self.foreground}: the foreground mask is empty. Drop it or mend it.")
        return mask


class Memo:
    """Results by name, each made once, in whichever thread asks first; so are errors."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._made: dict[Any, tuple[Any, Exception | None]] = {}

    def __call__(self, name: Any, make: Callable[[], T]) -> T:
        """Return what was made under a name, or make it."""
        with self._lock:
            if name not in self._made:
                try:
                    self._made[name] = make(), None
                except (NormscanError, OSError, MemoryError) as error:
                    self._made[name] = None, error
            value, problem = self._made[name]
        if problem is not None:
            raise problem
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Opened(CohortRow):
    """A row whose files are read once, however often and by whomever they are asked for.

    It holds what was read as long as it lives, so nobody should keep many of them.

    Attributes:
        row: whose files they are.
        memo: what was read, and what others made of it.
    """

    row: CohortRow = field(default=None, compare=False, repr=False)  # type: ignore[assignment]
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    @classmethod
    def of(cls, row: CohortRow) -> Opened:
        """Return a row to be read once."""
        return cls(**{f.name: getattr(row, f.name) for f in fields(CohortRow)}, row=row)

    def content(self) -> list[str]:
        return self.memo("content", self.row.content)

    def load(self) -> Scan:
        return self.memo("scan", self.row.load)

    def load_mask(
        self, scan: Scan, threshold: float = 0.5, report: MaskReport | None = None
    ) -> np.ndarray | None:
        found = MaskReport()
        mask, counted = self.memo(
            ("mask", threshold), lambda: (self.row.load_mask(scan, threshold, found), found)
        )
        if report is not None:
            report.take(counted)
        return mask

    def load_companion(self, name: str, scan: Scan) -> np.ndarray | None:
        return self.memo(("companion", name), lambda: self.row.load_companion(name, scan))

    def load_further(self) -> dict[str, Scan]:
        return self.memo("further", self.row.load_further)

    def load_foreground(self, scan: Scan) -> np.ndarray | None:
        return self.memo("foreground", lambda: self.row.load_foreground(scan))
