"""Which scans a detector was given and what for, so that they are known when they come back."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from normscan.cohort.row import CohortRow
from normscan.errors import CohortError, ScanError
from normscan.io import atomic_path, content_hash

AUXILIARY = "auxiliary"
CALIBRATION = "calibration"  # of another cohort, after training
EXCLUDED = "excluded"  # left out of the fit by hand
HEAD = ("scan", "subject", "split", "sha256", "sha256_beside")


class Member(NamedTuple):
    """A scan of a division.

    Attributes:
        scan: its name.
        subject: whose it is, as the table says.
        split: train, val, test, extra, auxiliary, calibration, excluded or an empty string.
        content: SHA-256 of each of its files, parted by spaces; empty where one can't be read.
        beside: likewise of what stands beside it: targets, structures, masks, further images.
    """

    scan: str
    subject: str
    split: str
    content: str
    beside: str = ""


def _rank(split: str) -> int:
    """Order splits by how much a scan in them is known to the detector, the most first."""
    known = ("train", AUXILIARY, "val", CALIBRATION, EXCLUDED, "extra", "test")
    return known.index(split) if split in known else len(known)


@dataclass
class Division:
    """The scans of a cohort by name, subject, split and content.

    Attributes:
        members: all scans.
    """

    members: list[Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Of copies the one that trained counts.
        ranked = sorted(self.members, key=lambda m: _rank(m.split), reverse=True)
        self._by_content = {m.content: m for m in ranked if m.content}
        self._by_name = {(m.scan, m.subject): m for m in reversed(self.members)}

    @classmethod
    def of(cls, rows: Iterable[CohortRow], split: str | None = None) -> Division:
        """Return that of scans, whose files are read for their hashes.

        Args:
            rows: the scans.
            split: of all of them, instead of what they say.
        """
        members = []
        for row in rows:
            beside = (*row.targets, row.structures, row.foreground, row.mask, *row.further.values())
            place = split or row.split
            own = content_of(row.paths)
            members.append(
                Member(row.scan, row.subject, place, own, content_of(filter(None, beside)))
            )
        return cls(members)

    def joined(self, other: Division, instead_of: str | None = None) -> Division:
        """Return that of the scans of both, without those of this one in a split it replaces."""
        return Division([*(m for m in self.members if m.split != instead_of), *other.members])

    @classmethod
    def read(cls, path: Path) -> Division:
        """Read what ``write`` wrote.

        Raises:
            CohortError: no such table.
        """
        try:
            head, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
            if tuple(head) != HEAD:
                raise ValueError(f"its columns are {', '.join(head)}")
            return cls([Member(*row) for row in rows])
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise CohortError(
                f"{path} is damaged ({error}), so nobody can tell which scans trained. Copy it again "
                "from where the detector came from."
            ) from error

    def write(self, path: Path) -> None:
        """Write the table."""
        text = io.StringIO()
        csv.writer(text).writerows([HEAD, *self.members])
        with atomic_path(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")

    def digest(self) -> str:
        """Return a hash of the scans' names, subjects and content, whatever their split."""
        told = sorted((m.scan, m.subject, m.content) for m in self.members)
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def changed(self, other: Division) -> list[str]:
        """Return the names of scans that a detector may learn from and whose files differ."""
        idle = ("", "test", EXCLUDED)
        before = {(m.scan, m.split): m for m in self.members if m.split not in idle}
        return [m.scan for m in other.members if before.get((m.scan, m.split), m) != m]

    def find(self, content: str, partly: bool = False) -> Member | None:
        """Return the scan of the same content, or None.

        Args:
            content: see ``Member``.
            partly: one file in common is enough, as of a scan whose other channels are missing.
        """
        found = self._by_content.get(content)
        if found is not None or not partly:
            return found
        files = set(content.split())
        shared = [m for m in self.members if files & set(m.content.split())]
        return min(shared, key=lambda m: _rank(m.split), default=None)

    def places(self, rows: Sequence[tuple[str, str, str]]) -> tuple[list[str | None], int]:
        """Return the split of each scan, None for those of subjects that nobody knows.

        Scans are known by their content; where it is another, by name and subject. All scans of a
        subject go where its known ones are.

        Args:
            rows: name, subject and content of each.

        Returns:
            The splits, and how many scans were known by their name alone.
        """
        found = [self.find(c) or self._by_name.get((scan, who)) for scan, who, c in rows]
        named = sum(
            m is not None and m.content != content
            for m, (*_, content) in zip(found, rows, strict=True)
        )
        places: list[tuple[str, str]] = []
        if any(found):
            places = [(m.subject, m.split) for m in self.members if m.split != AUXILIARY]
        for member, (_, subject, _) in zip(found, rows, strict=True):
            if member is not None:
                places.append((subject, member.split))
        # What trained goes before what didn't.
        homes = dict(sorted(places, key=lambda place: _rank(place[1]), reverse=True))
        aside = (AUXILIARY, CALIBRATION, EXCLUDED)
        homes = {w: "extra" if s in aside else s for w, s in homes.items()}
        return [homes.get(subject) for _, subject, _ in rows], named


def content_of(paths: Iterable[Path]) -> str:
    """Return the hashes of a scan's files, parted by spaces; an empty string if one can't be read."""
    try:
        return " ".join(content_hash(path) for path in paths)
    except ScanError:
        return ""
