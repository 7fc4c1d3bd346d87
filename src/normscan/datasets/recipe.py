r'''What is known of a public data set, as data: the recipes in ``recipes/*.toml``.

A recipe is one table of a TOML file. Its name is the id of the data set::

    [cc359]
    name = "Calgary-Campinas-359"
    modality = "MRI T1w"                       # starts with MRI, CT, CXR, OCT, fundus, ...
    task = "healthy, 3 vendors x 2 fields"
    access = "form"                            # open, form, cred, rules or unresolved
    how = "Register at the site, then download 'Original'."     # the steps
    home = "https://www.ccdataset.com"
    licence = "CC BY-ND"
    licence_checked = false                    # true only if read on the official page
    layout = """
    Original/CC0001_philips_15_55_M.nii.gz     (id_vendor_field_age_sex)
    """
    traps = ["..."]
    used_by = ["..."]
    counts = { scans = 359, healthy = 359, subjects = 359 }     # a list = any of these values
    parts = { "Original/*.nii.gz" = 359 }      # files by pattern, to name what is missing

    [[cc359.files]]                            # one or more; the first that takes a file wins
    path = "Original/{subject}_{vendor}_{field}_{age}_{sex}.nii.gz"
    label = 0

**Patterns** are relative to the root folder and match whole paths, in any case. ``{name}`` is a
part of one file or folder name and becomes a column; ``{name:regex}`` says what it may be (no
groups with names inside), for example ``{_gz:(?:[.]gz)?}`` for a part that may be absent; a name
that stands twice must be the same text twice. ``*`` is any part of a name, ``**/`` any number of
folders. A name that starts with ``_`` joins files but becomes no column. ``subject``, ``scan``,
``site`` and ``split`` fill the columns of those names; a ``split`` from the folders counts only
where a split of the rule ``given`` is asked for, else it becomes ``given_split``.

**Fields of a files rule** (``FileRule``)

========== =====================================================================================
path       pattern of the image; or ``channels = { t1 = "...", flair = "..." }``: one row for each
           distinct set of names in the first channel, the others found by the names they share
folder     true: the row is the folder of the files that fit (a DICOM series)
exclude    patterns of files that are no images of this rule
set        ``{ kind = "crack", subject = "{site}-{_number}" }``: columns from templates
map        ``{ site = { HH = "Hammersmith 3T" } }``: other words for values, after ``set``
tables     side tables, see below
label      0, 1, or ``{ column = "kind", values = { normal = 0 }, other = 1 }``, or
           ``{ column = "grade", above = 0 }`` (a number above it is anomalous), or ``"mask"`` (1
           where a mask file is there), or ``"pixels"`` (1 where the mask has a pixel above 0).
           Without it, or for a value that isn't listed and no ``other``, the label is unknown
mask       pattern or list of patterns of lesion masks, found by the names they share with the
           row; several files for one row are united
mask_values label values that count, such as ``[1]`` where 2 means "ignore"
foreground pattern of the mask of the anatomy
boxes      ``{ file, key, on, box = ["x", "y", "width", "height"], corners = false, kind = "" }``:
           boxes become a column ``boxes`` (JSON, x, y, width, height), never a mask; ``kind`` is a
           column of the table that names the finding
========== =====================================================================================

Templates are texts with ``{column}``; ``{column:int}`` drops leading zeros, ``{column:lower}`` and
``{column:upper}`` change the case. ``{name}``, ``{stem}``, ``{folder}`` and ``{path}`` are those of
the (first) file.

**Side tables** (``tables``, a list): ``file`` is a pattern (names in it must be columns of the row,
for example one table a split); ``key`` the column of the table, or a template over its columns,
that equals the template ``on``; ``columns = { grade = "diagnosis" }`` the columns to take (new =
old); ``onehot = { kind = ["MEL", "NV"] }`` makes one column of several, and
``votes = { ich = ["R1:ICH", "R2:ICH", "R3:ICH"] }`` the majority (1 or 0) of readers; ``many`` says
what to do with several lines for one key: ``same`` (they agree, else the values are joined by ``|``),
``max``, ``mean``, ``majority`` (commonest value); ``separator`` and ``header`` (names, where the
file has none) for odd text files; ``optional = true`` if the download may lack it. CSV, TSV, TXT
(separated by white space), and XLS/XLSX where the reader is installed; a ``.csv`` of the same
stem is taken in place of a spreadsheet.

**Splits** (``[id.splits.NAME]``): ``source`` says whose it is and where it was read; ``counts``
what it should give, for example ``{ "train 0" = 73, "test 1" = 155 }`` (part and label). ``rule``:

========== =====================================================================================
given      ``column`` of the row names the part; ``values = { valid = "val" }`` translates
normals    healthy scans divided by scikit-learn's ``train_test_split(test_size, random_state =
           seed)`` in the order of their paths, all anomalous ones in test (DRA and its followers)
all-test   everything is test
list       an id list: ``file`` in this package (``splits/...csv``: an id column and ``split``), or
           given by the user with ``--split_file``; ``needs`` says which file of which repository
none       known but not to be made from the download alone (slices, other preprocessing): ``note``
========== =====================================================================================

``where = { kind = ["normal", "cnv"] }`` leaves rows of other values without a part. ``leaks = true``
marks a published split that has subjects on both sides: the subject then moves to the column
``patient`` and every scan counts as a subject of its own.

``inherits = "brats18"`` takes every field that isn't given here from another recipe.
``builder = "module:function"`` (below ``normscan.datasets``) is the way out where data can't say
it: ``function(tree, rows, work) -> rows`` gets the files (``layout.Tree``), the rows made so far
(dictionaries of texts; ``path`` or ``path_<channel>`` relative to the root or absolute, ``label``
0, 1 or None, ``mask`` text or a list) and a function that gives the folder for files it writes.
What it couldn't use it appends to ``tree.notes``.

Formats that ``read_scan`` doesn't know but SimpleITK does (NRRD, MetaImage) are converted to NIfTI
at preparation.
'''

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from normscan.errors import ArgumentError, CohortError, nearest
from normscan.io.values import inherited

Part = Literal["train", "val", "test", "extra", ""]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TableRule(_Model):
    """A side table that is joined to the rows; see the module's description."""

    file: str
    key: str
    on: str
    columns: dict[str, str] = {}
    onehot: dict[str, list[str]] = {}
    votes: dict[str, list[str]] = {}
    many: Literal["same", "max", "mean", "majority"] = "same"
    separator: str = ""
    header: list[str] = []
    optional: bool = False


class BoxRule(_Model):
    """A side table of boxes."""

    file: str
    key: str
    on: str
    box: tuple[str, str, str, str]
    corners: bool = False
    kind: str = ""
    separator: str = ""
    optional: bool = False


class LabelRule(_Model):
    """A label from a column."""

    column: str
    values: dict[str, Literal[0, 1]] = {}
    other: Literal[0, 1] | None = None
    above: float | None = None


class FileRule(_Model):
    """Files that become rows; see the module's description."""

    path: str = ""
    channels: dict[str, str] = {}
    folder: bool = False
    exclude: list[str] = []
    set: dict[str, str] = {}
    map: dict[str, dict[str, str]] = {}
    tables: list[TableRule] = []
    label: Literal[0, 1, "mask", "pixels"] | LabelRule | None = None
    mask: str | list[str] = []
    mask_values: list[int] = []
    foreground: str = ""
    boxes: BoxRule | None = None

    @property
    def masks(self) -> list[str]:
        """The patterns of masks as a list."""
        return [self.mask] if isinstance(self.mask, str) else self.mask


class SplitRule(_Model):
    """A split of the literature; see the module's description."""

    source: str
    rule: Literal["given", "normals", "all-test", "list", "none"]
    column: str = "split"
    values: dict[str, Part] = {}
    where: dict[str, list[str]] = {}
    test_size: float = 0.25
    seed: int = 42
    file: str = ""
    needs: str = ""
    leaks: bool = False
    counts: dict[str, int] = {}
    note: str = ""


class Url(_Model):
    """A file that may be fetched directly: its size in bytes and checksum where they are known."""

    url: str
    file: str
    sha256: str = ""
    md5: str = ""
    size: int = 0
    unpack: bool = False


class Recipe(_Model):
    """Everything normscan knows of a data set; see the module's description."""

    id: str
    name: str
    section: str
    modality: str
    task: str
    access: Literal["open", "form", "cred", "rules", "unresolved"]
    how: str
    home: str = ""
    licence: str
    licence_checked: bool = False
    layout: str
    labels: str
    masks: str = "none"
    counts: dict[str, int | list[int]] = {}
    parts: dict[str, int | list[int]] = {}
    traps: list[str] = []
    used_by: list[str] = []
    files: list[FileRule] = []
    splits: dict[str, SplitRule] = {}
    urls: list[Url] = []
    builder: str = ""
    source: str = Field(default="", description="where the facts were read")

    def text(self) -> str:
        """Return the recipe as a page for people."""
        licence = self.licence + ("" if self.licence_checked else " (not checked; see the page)")
        lines = [
            f"{self.id}: {self.name}",
            f"modality  {self.modality}\ntask      {self.task}",
            f"access    {ACCESS[self.access]}",
            f"          {self.how}",
            f"page      {self.home or 'none known'}",
            f"licence   {licence}",
        ]
        if self.urls:
            lines.append(f"download  normscan datasets download {self.id} --root FOLDER")
        expected = ", ".join(f"{_either(v)} {k}" for k, v in self.counts.items())
        lines += ["", f"expected  {expected or 'no numbers known'}"]
        lines += ["", "layout, below the root folder", _indent(self.layout)]
        lines += ["", f"label     {self.labels}", f"mask      {self.masks}", "", "splits"]
        lines.append("  (none): normscan's own, by subject, if no --split is given")
        for name, split in self.splits.items():
            lines.append(f"  {name}: {_split_text(split)}")
        lines += ["", *(f"note      {trap}" for trap in self.traps)]
        if self.source:
            lines.append(f"facts     {self.source}")
        if self.used_by:
            lines.append(f"used by   {', '.join(self.used_by)}")
        return "\n".join(lines).rstrip()


ACCESS = {
    "open": "open: no form, no application",
    "form": "form: register or agree to terms on a web page",
    "cred": "cred: an approved application or a data-use agreement signed by an institution",
    "rules": "rules: accept the rules of a competition",
    "unresolved": "unresolved: it is not known which data set is meant",
}


def load(id: str) -> Recipe:
    """Return the recipe of a data set.

    Raises:
        ArgumentError: no such data set; the nearest id is named.
    """
    known = _all()
    if id not in known:
        raise ArgumentError(
            f"there is no data set '{id}'.{nearest(id, known)} `normscan datasets` lists them."
        )
    return known[id]


def list_datasets(modality: str = "", access: str = "") -> list[Recipe]:
    """Return the recipes in the order of the files.

    Args:
        modality: only those whose modality holds this word, in any case (``MRI``, ``OCT``).
        access: only those of this access: open, form, cred, rules or unresolved.

    Raises:
        ArgumentError: another access.
    """
    if access and access not in ACCESS:
        raise ArgumentError(f"access '{access}' isn't known: {', '.join(ACCESS)}.")
    return [
        recipe
        for recipe in _all().values()
        if modality.lower() in recipe.modality.lower() and access in ("", recipe.access)
    ]


@cache
def _all() -> dict[str, Recipe]:
    raw: dict[str, dict[str, Any]] = {}
    folder = files("normscan.datasets") / "recipes"
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            tables = tomllib.loads(file.read_text("utf-8"))
            section = file.name.removesuffix(".toml")
            raw |= {id: {"section": section, **table} for id, table in tables.items()}
    return {id: parse(id, raw) for id in raw}


def parse(id: str, raw: dict[str, dict[str, Any]]) -> Recipe:
    """Check one recipe of several and fill in what it inherits.

    Raises:
        CohortError: an unknown or missing field, or a wrong value; the message names it.
    """
    table = inherited(id, raw, "recipe") | {"section": raw[id]["section"]}
    try:
        return Recipe(**table | {"id": id})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CohortError(f"recipe {id}: {where}: {first['msg']}.") from error


def _split_text(split: SplitRule) -> str:
    counts = ", ".join(f"{k}: {v}" for k, v in split.counts.items())
    needs = f"Needs --split_file: {split.needs}" if split.needs else ""
    alone = "Not to be made from the download alone: " if split.rule == "none" else ""
    said = (split.source, counts and f"[{counts}]", alone + split.note, needs)
    return ". ".join(text.rstrip(".") for text in said if text) + "."


def _either(value: int | list[int]) -> str:
    return " or ".join(map(str, value)) if isinstance(value, list) else str(value)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
