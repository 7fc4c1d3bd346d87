"""Tables of scans on disk: reading, checking and writing them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cohort.delimited import read_cells
from normscan.errors import CohortError, nearest, printable
from normscan.io.files import stem

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("scan", "subject", "path", "label", "mask", "foreground", "split", "site")
SPLITS = ("train", "val", "test", "extra")
FILES = ("path", "target", "mask", "foreground", "structures")
FURTHER = "further_"  # columns of further images of a case
PREFIXES = ("path_", "target_", FURTHER)  # of columns that hold files, one for each name
LONGEST_NAME = 180  # bytes; file systems take 255, and results add endings
TABLES = (".csv", ".tsv", ".parquet")
EXAMPLE = (
    "Describe it in a CSV with the columns path, label (0 healthy, 1 anomalous, empty unknown) "
    "and, where there are any, subject, mask, foreground, split (train, val, test), site."
)
# What a label may be called, in any case. Folders are told by their own words (``layouts``).
HEALTHY_WORDS = (
    "healthy", "normal", "control", "controls", "hc", "negative", "no", "good", "false",
)  # fmt: skip
ANOMALOUS_WORDS = (
    "anomalous", "anomaly", "abnormal", "unhealthy", "diseased", "disease", "patient", "patients",
    "lesion", "lesioned", "tumor", "tumour", "stroke", "pathological", "pathology", "positive", "yes",
    "ungood", "bad", "defect", "defective", "sick", "true",
)  # fmt: skip
UNKNOWN_WORDS = ("unknown", "unlabelled", "unlabeled", "n/a", "na")
_LABELS: dict[str, int | None] = {
    "": None, "0": 0, "1": 1, "0.0": 0, "1.0": 1,
    **dict.fromkeys(HEALTHY_WORDS, 0), **dict.fromkeys(ANOMALOUS_WORDS, 1),
    **dict.fromkeys(UNKNOWN_WORDS),
}  # fmt: skip
# What other programs call the columns that must be there.
_ALSO = {
    "path": ("image", "images", "file", "filename", "filepath", "image_path", "img", "scan_path"),
    "label": ("class", "target", "y", "diagnosis", "group", "status", "anomaly"),
}


def holds_files(column: str) -> bool:
    """Whether the cells of a column are paths."""
    return column in FILES or column.startswith(PREFIXES)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file; every cell as text, empty cells as ``""``.

    Raises:
        CohortError: another format, a damaged file, another encoding, what ``read_cells`` refuses.
    """
    import pandas as pd

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(path)
            texts = {name: [_text(v) for v in table[name]] for name in table.columns}
            table = pd.DataFrame(texts, dtype=object)
        elif suffix in TABLES:
            table = pd.DataFrame(read_cells(path), dtype=object)
        else:
            raise CohortError(f"{path}: a table is one of {', '.join(TABLES)}, not '{suffix}'.")
    except CohortError:
        raise
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: isn't UTF-8 text. Save the table as 'CSV UTF-8'.") from error
    except Exception as error:  # the parsers raise anything on a damaged file
        reason = (str(error).strip().split("\n") or [repr(error)])[0][:200]
        raise CohortError(f"{path}: is no readable {suffix} table ({reason}).") from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _text(value: Any) -> str:
    """Return a cell as text: whole floats (labels beside gaps) without their ``.0``."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def normalise(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Check a table and bring it to the columns of ``Cohort``.

    Args:
        table: any table with ``path`` (or ``path_<channel>``) and ``label``.
        source: what to call it in messages.

    Returns:
        A new table with all standard columns as text (``label`` as Int64) and the free columns,
        as numbers where all their cells are.

    Raises:
        CohortError: missing, doubled or misspelt columns, a row without a file, a label or split
            of another value, the same file or scan name twice.
    """
    import pandas as pd

    table = table.set_axis(_heads([str(c) for c in table.columns]), axis=1)
    _check_columns(list(table.columns), source)
    cells = {str(c): [_text(v) for v in table[c]] for c in table.columns}
    for name in COLUMNS:
        cells.setdefault(name, [""] * len(table))
    paths = [name for name in cells if name == "path" or name.startswith("path_")]
    files = list(zip(*(cells[name] for name in paths), strict=True))
    _check_files(files, source)
    labels = _labels(cells["label"], source)
    _check_splits(cells["split"], source)
    cells["scan"] = _scan_names(cells["scan"], files, source)
    cells["subject"] = [
        subject or scan for subject, scan in zip(cells["subject"], cells["scan"], strict=True)
    ]
    beside = [name for name in cells if holds_files(name) and name not in (*paths, *COLUMNS)]
    standard = [c for c in ("scan", "subject", *paths, *COLUMNS[3:], *beside) if c in cells]
    result = pd.DataFrame({c: pd.Series(cells[c], dtype=object) for c in standard})
    result["label"] = pd.array(labels, dtype="Int64")
    free = {name: _numbers(cells[name]) for name in cells if name not in standard}
    return pd.concat([result, pd.DataFrame(free, index=result.index)], axis=1)


def label_notes(table: pd.DataFrame) -> list[str]:
    """Say which words of a table were taken for healthy and for anomalous, where any were."""
    column = next((c for c in table.columns if str(c).strip().lower() == "label"), None)
    if column is None:
        return []
    words = sorted({_text(v) for v in table[column]})
    said = {
        meaning: [w for w in words if _LABELS.get(w.lower(), -1) == value and w.isalpha()]
        for meaning, value in (("healthy", 0), ("anomalous", 1))
    }
    taken = [f"{', '.join(given)} as {meaning}" for meaning, given in said.items() if given]
    plain = all(w.lower() in ("true", "false") for given in said.values() for w in given)
    return [] if plain else [f"Labels were taken by their words: {'; '.join(taken)}."]


def _heads(names: list[str]) -> list[str]:
    """Return the names of the columns, the cohort's own in lower case (``Path``, ``Path_T1``)."""
    heads = []
    for name in names:
        low = name.strip().lower()
        first = next((p for p in PREFIXES if low.startswith(p)), "")
        own = low if low in (*COLUMNS, *FILES) else first + name.strip()[len(first) :]
        heads.append(own if first or low in (*COLUMNS, *FILES) else name)
    return heads


def _check_columns(names: list[str], source: str) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise CohortError(f"{source}: the column {doubled[0]} stands twice. Keep one.")
    has_path = "path" in names or any(name.startswith("path_") for name in names)
    missing = [c for c, there in (("path", has_path), ("label", "label" in names)) if not there]
    if missing:
        hints = " ".join(_hint(m, [n for n in names if n not in COLUMNS]) for m in missing)
        hints = hints and f" {hints.strip()}"
        empty = " Its cells may be empty (unknown)." if missing == ["label"] else ""
        raise CohortError(
            f"{source}: has no column {' and no column '.join(missing)}, only "
            f"{', '.join(names) or 'none at all'}.{hints}{empty} {EXAMPLE}"
        )
    known = dict.fromkeys((*COLUMNS, *FILES))
    free = [n for n in names if n not in known and not holds_files(n)]
    for name in free:
        meant = [c for c in known if c not in names and _is_slip(name, c)]
        if meant:
            raise CohortError(
                f"{source}: the column '{name}' would be ignored. Did you mean '{meant[0]}'? "
                "Rename it."
            )


def _hint(missing: str, names: list[str]) -> str:
    for name in names:
        if name.lower() in _ALSO[missing]:
            return f"Is it '{name}'? Call it {missing}."
    found = nearest(missing, {n.lower(): n for n in names})
    for name in names:
        found = found.replace(f"'{name.lower()}'", f"'{name}'")
    return found.replace("Did you mean", f"For {missing}, did you mean")


def _is_slip(name: str, column: str) -> bool:
    """Tell whether a free column is a standard one misspelt (``Subject``, ``masks``)."""
    import difflib

    return difflib.SequenceMatcher(None, name.lower(), column).ratio() > 0.8


def _check_files(files: list[tuple[str, ...]], source: str) -> None:
    if not files:
        raise CohortError(f"{source}: has no rows. {EXAMPLE}")
    seen: dict[tuple[str, ...], int] = {}
    for row, cells in enumerate(files):
        if not any(cells):
            raise CohortError(f"{source}: row {row + 1} names no file. Fill its path or drop it.")
        if any("\0" in cell for cell in cells):
            raise CohortError(f"{source}: row {row + 1} has a path with a NUL character.")
        if cells in seen:
            name = next(cell for cell in cells if cell)
            raise CohortError(
                f"{source}: rows {seen[cells] + 1} and {row + 1} name the same file {name}. "
                "Keep one of them."
            )
        seen[cells] = row


def _labels(cells: list[str], source: str) -> list[int | None]:
    for row, cell in enumerate(cells):
        if cell.lower() not in _LABELS:
            raise CohortError(
                f"{source}: the label '{cell}' in row {row + 1} isn't known. Write 0 (or healthy) for "
                "healthy, 1 (or anomalous) for anomalous, nothing where it is unknown."
            )
    return [_LABELS[cell.lower()] for cell in cells]


def _check_splits(cells: list[str], source: str) -> None:
    for row, cell in enumerate(cells):
        if cell and cell not in SPLITS:
            raise CohortError(
                f"{source}: the split '{cell}' in row {row + 1} isn't known. "
                f"Write one of {', '.join(SPLITS)}.{nearest(cell, SPLITS)}"
            )


def _scan_names(given: list[str], files: list[tuple[str, ...]], source: str) -> list[str]:
    """Return unique names, which serve as file names of results."""
    if not any(given):
        return unique_names([next(cell for cell in cells if cell) for cells in files])
    seen: set[str] = set()
    for row, name in enumerate(given):
        if not name or name in seen:
            what = f"'{name}' stands twice" if name else "is empty"
            raise CohortError(
                f"{source}: the scan name in row {row + 1} {what}. Give each scan a name of its "
                "own, or drop the column."
            )
        if name in (".", "..") or set(name) & set("/\\") or not name.isprintable():
            raise CohortError(
                f"{source}: the scan name '{printable(name)}' in row {row + 1} can't be a file name. "
                "Leave out slashes, backslashes and what can't be shown."
            )
        seen.add(name)
    return given


def unique_names(paths: list[str]) -> list[str]:
    """Name scans by their file's stem where that is unique, else by the shortest unique path."""
    parts = [Path(p.replace("\\", "/")).parts for p in paths]
    parts = [tuple(q for q in p if q not in ("..", ".", "/")) or ("scan",) for p in parts]
    stems = [(*p[:-1], stem(p[-1])) for p in parts]
    # The same stem in two formats keeps its extension.
    for candidates in (stems, parts):
        for depth in range(1, max(map(len, candidates)) + 1):
            names = [_file_name("_".join(p[-depth:])) for p in candidates]
            if len(set(names)) == len(names):
                return names
    return [f"{name}_{row}" for row, name in enumerate(names)]


def _file_name(name: str) -> str:
    """Return a name that files of results can begin with: text that can be shown, and not too long.

    Of a longer name the beginning stays, with a hash of the whole.
    """
    shown = printable(name).replace("\\", "_")
    bytes_ = shown.encode()
    if len(bytes_) <= LONGEST_NAME:
        return shown
    mark = hashlib.sha256(bytes_).hexdigest()[:8]
    return f"{bytes_[: LONGEST_NAME - 9].decode(errors='ignore')}_{mark}"


def _numbers(cells: list[str]) -> Any:
    """Return a free column as numbers if it holds nothing else; codes like 007 stay text."""
    import pandas as pd

    filled = [c for c in cells if c]
    code = any(c.lstrip("+-")[:1] == "0" and c.lstrip("+-")[1:2].isdigit() for c in filled)
    if not filled or code:
        return pd.Series(cells, dtype=object)
    try:
        numbers = [float(c) if c else float("nan") for c in cells]
    except ValueError:
        return pd.Series(cells, dtype=object)
    whole = all(c.lstrip("+-").isdigit() and len(c) < 16 for c in cells)
    return pd.Series(numbers, dtype="int64" if whole else "float64")


def find_root(table: pd.DataFrame, candidates: list[Path], source: str) -> Path:
    """Return the first folder under which one of the first files of the table exists.

    Raises:
        CohortError: under none of them; the message says what was looked for.
    """
    from normscan.io.address import split_address

    columns = [c for c in table.columns if c == "path" or c.startswith("path_")]
    first = [str(p) for p in table[columns].head(20).to_numpy().ravel() if p]
    for folder in candidates:
        if any(split_address(folder / name)[0].exists() for name in first):
            return folder
    looked = " or ".join(str(folder) for folder in candidates)
    mend = "Write paths relative to the folder of the table, or give that folder as root."
    if "\\" in first[0]:
        mend = "Its path has backslashes, which part no folders here: write slashes."
    raise CohortError(
        f"{source}: the file {first[0]} of its first row isn't under {looked}. {mend}"
    )


def write_table(table: pd.DataFrame, root: Path, path: Path) -> Path:
    """Write a table with paths relative to its own folder; see ``Cohort.write``."""
    from normscan.io import atomic_path

    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise CohortError(f"{path}: a table is one of {', '.join(TABLES)}, not '{suffix}'.")
    out = table.copy()
    folder = os.path.abspath(path.parent)
    for name in out.columns:
        if holds_files(name):
            out[name] = [_relative(root / p, folder) if p else "" for p in out[name]]
    with atomic_path(path) as temporary:
        if suffix == ".parquet":
            out.to_parquet(temporary, index=False)
        else:
            out.to_csv(temporary, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


def _relative(file: Path, folder: str) -> str:
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return str(Path(os.path.abspath(file)))
