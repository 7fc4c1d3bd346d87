"""A table of scans: who is healthy, who is not, who trains and who tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan import notebook
from normscan.bids.read import bids_table
from normscan.cohort.anomalies import FewAnomalies, draw_anomalies
from normscan.cohort.archive import archive_table
from normscan.cohort.division import AUXILIARY, Division
from normscan.cohort.layouts import read_layout
from normscan.cohort.row import CohortRow
from normscan.cohort.shown import few
from normscan.cohort.splits import (
    assign_splits,
    check_subjects,
    draw_references,
    only_healthy_trains,
    shared_copy,
)
from normscan.cohort.summary import CohortSummary, Progress, summarise
from normscan.cohort.table import (
    COLUMNS,
    FURTHER,
    SPLITS,
    TABLES,
    find_root,
    label_notes,
    normalise,
    read_table,
    write_table,
)
from normscan.errors import ArgumentError, CohortError, nearest

if TYPE_CHECKING:
    import pandas as pd

ALONE = "Of a case the image in 'path' is taken"
IN_MEMORY = "The table"  # how messages call one without a file


class Cohort:
    """A table of scans.

    The table (CSV, TSV, Parquet) has one row per scan and these columns; only ``path`` and
    ``label`` must be there:

    ==============  ============================================================================
    scan            unique name of the scan, used for file names; made from the path if absent
    subject         who it is of; splits are by subject. Each scan its own subject if absent
    path            file, relative to the table's folder (or its parent, or ``root``)
    path_<channel>  instead of ``path``: one file per channel, for example path_t1, path_flair
    label           0 healthy, 1 anomalous (or such words), empty unknown
    mask            lesion mask, or empty
    foreground      mask of the anatomy (for example the brain), or empty
    target          a further scan of the same subject on the same grid, or empty
    structures      label map of the anatomy, a whole number in each voxel, or empty
    target_<name>   instead of ``target``: several of them, for example target_t2, target_flair
    further_<name>  a further image of the case, of its own shape and place, for example the fundus
                    photograph beside an OCT volume, or empty
    split           train, val, test, extra or empty; made if the column is absent or all empty
    site            where it was taken, or empty
    others          kept as they are (age, sex, scanner, ...)
    ==============  ============================================================================

    train and val are healthy only: train fits the method, val sets the threshold. test is scored.
    extra holds anomalous and unlabelled scans, for methods that learn from them.

    Attributes:
        table: the rows, as above.
        root: folder of relative paths.
        notes: what was decided when the cohort was read.
        auxiliary: another cohort that some methods learn from besides, or None.
        anomalies: how the labelled anomalies in extra were drawn, or None.
        name: of the file or folder that it was read from, without its path; else empty.
        drawn: parts of which the table said nothing, so that their scans were drawn here.

    Example:
        >>> cohort = Cohort.read("brain_mri/")  # doctest: +SKIP
        >>> print(cohort.summary())  # doctest: +SKIP
        >>> for row in cohort.part("test"):  # doctest: +SKIP
        ...     scan = row.load()
    """

    name = ""
    drawn: tuple[str, ...] = ()

    def __init__(
        self,
        table: pd.DataFrame,
        root: str | os.PathLike[str] = ".",
        notes: Sequence[str] = (),
    ) -> None:
        """Check a table and take it as it is; ``read`` and ``from_table`` also make splits.

        Args:
            table: columns as in the class description; ``path`` and ``label`` at least.
            root: folder of relative paths.
            notes: what to say in the summary.

        Raises:
            CohortError: missing or misspelt columns, unknown labels or splits, the same scan twice,
                a subject in train and test.
        """
        self.notes = [*notes, *label_notes(table)]
        self.table = normalise(table, IN_MEMORY)
        check_subjects(self.table, IN_MEMORY)
        self.root = Path(root)
        self.auxiliary: Cohort | None = None
        self.anomalies: FewAnomalies | None = None

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str] | pd.DataFrame,
        root: str | os.PathLike[str] | None = None,
        seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
        division: Division | None = None,
    ) -> Cohort:
        """Read a table or a folder.

        A folder is read by its ``cohort.csv`` (.tsv, .parquet), else by the table of its name in a
        sister folder (``../splits/<name>.csv``: a fixed, published split), else as BIDS where it
        has a ``dataset_description.json`` (``normscan.cohort.read_bids``), else by its layout:
        ``no/ yes/``, ``normal/ abnormal/``, ``good/ ungood/``, MVTec AD, BMAD, each also below
        ``train/ val/ test/``. A .npz of many images with their labels (MedMNIST) is a cohort too.

        Where no split is given, healthy subjects are divided by ``fractions`` and anomalous scans
        go to test; the same seed gives the same split on every machine.

        Args:
            path: table, folder or .npz; or a pandas table, whose root is this folder by default.
            root: folder of the table's relative paths; by default the folder of the table or, if
                the files aren't there, that folder's parent.
            seed: of the split.
            fractions: healthy subjects for train, val and test.
            division: of the scans that a detector was fitted with (``detector.division``): where no
                split is given, theirs is taken over instead of drawn.

        Raises:
            CohortError: no such table or folder, an unknown layout, a wrong table (missing columns,
                unknown labels, doubled scans), files that aren't there, a subject in train and
                test.
            ArgumentError: fractions that don't sum to 1.
        """
        if not isinstance(path, str | os.PathLike):
            candidates = [Path(root or ".")]
            return cls._make(path, candidates, seed, fractions, [], IN_MEMORY, division)
        given = Path(path)
        if given.is_dir():
            return cls._read_folder(given, root, seed, fractions, division)
        if not given.is_file():
            if given.exists():
                raise CohortError(f"{given}: is neither a regular file nor a folder.")
            names = [p.name for p in given.parent.iterdir()] if given.parent.is_dir() else []
            raise CohortError(f"{given}: no such table or folder.{nearest(given.name, names)}")
        folder = Path(os.path.abspath(given)).parent
        if given.suffix.lower() == ".npz":
            table, notes = archive_table(given)
            return cls._make(table, [folder], seed, fractions, notes, str(given), division)
        candidates = [Path(root)] if root is not None else [folder, folder.parent]
        return cls._make(read_table(given), candidates, seed, fractions, [], str(given), division)

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        root: str | os.PathLike[str] = ".",
        seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.1, 0.2),
    ) -> Cohort:
        """Make a cohort of a pandas table, with splits as ``read`` makes them.

        Raises:
            CohortError: as ``read``.
            ArgumentError: as ``read``.
        """
        return cls._make(table, [Path(root)], seed, fractions, [], IN_MEMORY)

    @classmethod
    def empty(cls) -> Cohort:
        """Return a cohort without scans, for methods that need none."""
        import pandas as pd

        table = pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
        return cls._of(table.astype({"label": "Int64"}), Path(), [])

    @classmethod
    def _read_folder(
        cls,
        folder: Path,
        root: str | os.PathLike[str] | None,
        seed: int,
        fractions: Sequence[float],
        division: Division | None,
    ) -> Cohort:
        for suffix in TABLES:
            own = folder / f"cohort{suffix}"
            if own.is_file():
                return cls.read(own, root, seed, fractions, division)
        full = Path(os.path.abspath(folder))
        published = full.parent / "splits" / f"{full.name}.csv"
        if published.is_file():
            candidates = [Path(root)] if root is not None else [full.parent, published.parent]
            notes = [f"The fixed split of splits/{published.name} beside the folder was used."]
            table = read_table(published)
            return cls._make(table, candidates, seed, fractions, notes, str(published), division)
        if (folder / "dataset_description.json").is_file():
            table, notes = bids_table(folder)
        else:
            table, notes = read_layout(folder)
        return cls._make(table, [folder], seed, fractions, notes, str(folder), division)

    @classmethod
    def _make(
        cls,
        table: pd.DataFrame,
        candidates: list[Path],
        seed: int,
        fractions: Sequence[float],
        notes: list[str],
        source: str,
        division: Division | None = None,
    ) -> Cohort:
        notes = [*notes, *label_notes(table)]
        table = normalise(table, source)
        root = find_root(table, candidates, source)
        given = set(table["split"])
        table, more = assign_splits(table, root, seed, fractions, source, division)
        cohort = cls._of(table, root, [*notes, *more])
        if division is None and given <= {"", "train", "test", "extra"}:
            cohort.drawn = ("val",) if given - {""} else ("val", "test")
        cohort.name = "" if source == IN_MEMORY else Path(os.path.abspath(source)).name
        return cohort

    @classmethod
    def _of(cls, table: pd.DataFrame, root: Path, notes: list[str]) -> Cohort:
        """Wrap a table that is checked already."""
        cohort = object.__new__(cls)
        cohort.table, cohort.root, cohort.notes = table, root, list(notes)
        cohort.auxiliary = cohort.anomalies = None
        return cohort

    def _with(self, table: pd.DataFrame, notes: Iterable[str] = ()) -> Cohort:
        """Return the cohort with another table that is checked already."""
        cohort = self._of(table, self.root, [*self.notes, *notes])
        cohort.auxiliary, cohort.name = self.auxiliary, self.name
        cohort.anomalies, cohort.drawn = self.anomalies, self.drawn
        return cohort

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.table)

    def __iter__(self) -> Iterator[CohortRow]:
        """Iterate over the scans in the order of the table."""
        channels = self.channels
        return (
            CohortRow.from_cells(cells, self.root, channels)
            for cells in self.table.to_dict("records")
        )

    def __getitem__(self, index: int) -> CohortRow:
        """Return one scan by its position."""
        return CohortRow.from_cells(self.table.iloc[index].to_dict(), self.root, self.channels)

    def __repr__(self) -> str:
        """Return counts, no names."""
        counts = self.table["split"].value_counts()
        parts = ", ".join(f"{counts[s]} {s}" for s in SPLITS if s in counts)
        return f"Cohort({len(self)} scans: {parts or 'no splits'})"

    def _repr_html_(self) -> str:
        """Return counts, the first scans of each label as small pictures, for a notebook."""
        table = self.table
        counts = {s: int((table["split"] == s).sum()) for s in SPLITS}
        facts = {
            "scans": len(self),
            "subjects": table["subject"].nunique(),
            "columns": ", ".join(map(str, table.columns)),
        }
        facts |= {split: count for split, count in counts.items() if count}
        return notebook.page(
            f"Cohort {self.name}", facts, [(plane, None, name) for plane, name in few(self, 4)]
        )

    def show(self, n: int = 8) -> Any:
        """Return a figure of the middle planes of n scans, spread over the labels.

        Scans that can't be read are passed over.

        Raises:
            CohortError: none can be read.
        """
        found = few(self, n)
        if not found:
            raise CohortError(f"none of the first scans under {self.root} can be read.")
        return notebook.draw([plane for plane, _ in found], names=[name for _, name in found])

    @property
    def has_masks(self) -> bool:
        """True if an anomalous scan has a lesion mask."""
        return bool(((self.table["mask"] != "") & (self.table["label"] == 1).fillna(False)).any())

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels that have files of their own (``path_<channel>``), or an empty tuple."""
        return tuple(c[5:] for c in self.table.columns if c.startswith("path_"))

    @property
    def further(self) -> tuple[str, ...]:
        """Further images of a case (``further_<name>``), by name, or an empty tuple."""
        columns = map(str, self.table.columns)
        return tuple(c.removeprefix(FURTHER) for c in columns if c.startswith(FURTHER))

    def alone(self) -> Cohort:
        """Return the cohort without further images: a case is the image in ``path`` alone."""
        if not self.further:
            return self
        said = f"{ALONE}, without {', '.join(self.further)}."
        return self._with(
            self.table.drop(columns=[FURTHER + name for name in self.further]), [said]
        )

    def part(self, split: str) -> Cohort:
        """Return the scans of one split: train, val, test or extra.

        Raises:
            CohortError: no such split; an empty part is no error.
        """
        if split not in SPLITS:
            raise CohortError(
                f"'{split}' is no part of a cohort: {', '.join(SPLITS)}.{nearest(split, SPLITS)}"
            )
        return self.select(self.table["split"] == split)

    def select(self, rows: Any) -> Cohort:
        """Return the scans for which ``rows`` (booleans, one per scan) is true."""
        return self._with(self.table[np.asarray(rows, dtype=bool)].reset_index(drop=True))

    def with_auxiliary(self, other: Cohort | str | os.PathLike[str]) -> Cohort:
        """Return the cohort with another one beside it, for methods of two domains.

        They learn from its scans in train and extra. A table or folder without splits is all train,
        but for what is labelled anomalous: that is test, and left out.

        Args:
            other: a cohort, or the path of its table or folder.

        Raises:
            CohortError: as ``read``; it holds an exact copy of a scan in val or test.
        """
        if not isinstance(other, Cohort):
            other = Cohort.read(other, fractions=(1.0, 0.0, 0.0))
        held = self.select(self.table["split"].isin(["val", "test"]))
        if name := shared_copy((held.table, held.root), (other.table, other.root)):
            raise CohortError(
                f"The scan '{name}' of the auxiliary cohort is an exact copy of one in val or test, "
                "so the test would measure memory. Leave it out."
            )
        cohort = self._with(self.table)
        cohort.auxiliary = other
        return cohort

    def references(self, count: int, seed: int) -> Cohort:
        """Return the cohort with so many training scans; see ``draw_references``.

        Raises:
            CohortError: it has fewer training subjects.
        """
        return self._with(*draw_references(self.table, self.root, count, seed, self.drawn))

    def with_anomalies(self, count: int, seed: int = 0, seen: str = "") -> Cohort:
        """Return the cohort with labelled anomalies in extra; see ``draw_anomalies``.

        Args:
            count: of scans, each of another subject, of which nothing is tested.
            seed: of the draw.
            seen: ``COLUMN=VALUE``: only this class is drawn, and none of it is tested.

        Raises:
            ArgumentError: less than one.
            CohortError: it has fewer, or none would be left to test.
        """
        few = FewAnomalies(count, seed, seen)
        cohort = self._with(draw_anomalies(self.table, self.root, few), [f"{few}."])
        cohort.anomalies = few
        return cohort

    def slices(
        self,
        first: int = 0,
        last: int | None = None,
        step: int = 1,
        axis: int = 2,
        progress: Progress | None = None,
    ) -> Cohort:
        """Return the slices of the volumes as scans of their own, for example 60 to 99 of BraTS.

        No file is cut: a path becomes ``volume.nii.gz#slice=80``. A slice is anomalous if its part
        of the lesion mask is not empty; without a mask the slices of a healthy volume are healthy
        and those of an anomalous one unlabelled. Subjects, splits and columns are those of the
        volume; the column ``slice`` is added.

        Args:
            first: number of the first slice, from 0, as the file counts them.
            last: number after the last slice; None for all.
            step: take every so many.
            axis: of the file, 0 to 2, along which they are counted.
            progress: ``progress(iterable, description)`` gives the iterable back with a bar.

        Raises:
            CohortError: no volume has such a slice.
            ArgumentError: a step below 1 or a negative number.
        """
        if first < 0 or step < 1 or not 0 <= axis <= 2 or (last is not None and last <= first):
            raise ArgumentError(
                f"slices first={first}, last={last}, step={step}, axis={axis}: count from 0, with a "
                "last above the first, a step of 1 or more, and axis 0, 1 or 2."
            )
        from normscan.cohort.slices import slice_table

        cells = self.table.to_dict("records")
        table, notes = slice_table(list(self), cells, first, last, step, axis, progress)
        table = normalise(table, "The slices")
        more = only_healthy_trains(table)
        return self._with(table, [*notes, *more])

    def digest(self) -> str:
        """Return a hash of what the table says of the scans that a detector may learn from."""
        part = self.table[self.table["split"].isin(["train", "val", "extra"])]
        told = part.to_csv(index=False)
        if self.auxiliary is not None:
            told += self.auxiliary.digest()
        return hashlib.sha256(told.encode()).hexdigest()

    def division(self) -> Division:
        """Return which scans stand in which split, by name and content; every file is read."""
        found = Division.of(self)
        if self.auxiliary is not None:
            learnt = [row for row in self.auxiliary if row.split in ("train", "extra")]
            found = Division([*found.members, *Division.of(learnt, AUXILIARY).members])
        return found

    def require_healthy(self) -> None:
        """Refuse a cohort that nothing healthy can be learnt from.

        Raises:
            CohortError: no healthy scan is in train.
        """
        table = self.table
        if not ((table["split"] == "train") & (table["label"] == 0).fillna(False)).any():
            raise CohortError(
                f"The cohort under {self.root} has no healthy scan in train ({self!r}). Give "
                "healthy scans the label 0 and, where splits are given, the split train."
            )

    def summary(self, progress: Progress | None = None) -> CohortSummary:
        """Look at every file (header and hash, pixels of lesion masks alone) and count what is there.

        Args:
            progress: ``progress(iterable, description)`` gives the iterable back with a bar.
        """
        return summarise(list(self), self.notes, progress)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as CSV, TSV or Parquet, with paths relative to its folder.

        Raises:
            CohortError: another extension.
            OutputError: the folder can't be written.
        """
        return write_table(self.table, self.root, Path(path))
