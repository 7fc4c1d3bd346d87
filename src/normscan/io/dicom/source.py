"""Where DICOM files lie: single files, folders, zip archives. Nothing found there is trusted."""

from __future__ import annotations

import os
import stat
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from normscan.errors import ScanError
from normscan.io.files import decoding, is_bare_dicom, walk_files
from normscan.io.memory import check_memory, memory_limit

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PathLike = str | os.PathLike[str]

MAX_FILES = 100_000  # of a folder
MAX_MEMBERS = 20_000  # of an archive
MAX_UNPACKED = 2**34  # bytes of an archive
MAX_INFLATED = 2**31  # bytes of a file in deflated transfer syntax
MAX_RATIO = 1100  # deflate packs at most 1032 to 1
MAX_ITEMS = 500_000  # of all sequences of a file
MAX_READS = 2_000_000  # steps of the parser through a file
FEW_READS = 100_000  # what a small file may take of them; more by one in 32 bytes
_ITEM = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
FEW_BYTES = 2**20  # that are read without looking at the memory
HEAD = 512


@dataclass(frozen=True)
class Source:
    """A file on disk or a member of an archive.

    Attributes:
        path: the file, or the archive.
        size: bytes.
        changed: time of its last change in ns.
        place: number of the member in its archive, from 1; 0 for a file.
        mark: inode and the time of its last change, which can't be set back.
        archive: the open archive.
    """

    path: Path
    size: int
    changed: int = 0
    place: int = 0
    mark: str = ""
    archive: Any = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the file for messages; names inside an archive may be those of patients."""
        return f"{self.path} (file {self.place} in it)" if self.place else str(self.path)

    def open(self) -> IO[bytes]:
        """Open for reading, with bounds; see ``_Clamped``."""
        if self.archive is None:
            file: IO[bytes] = self.path.open("rb")
            return _Clamped(file, self.size, str(self))  # type: ignore[return-value]
        info = self.archive.infolist()[self.place - 1]
        file = _Unpacked(self.archive.open(info), self.size, self.path)  # type: ignore[assignment]
        return _Clamped(file, self.size, str(self), info.compress_size)  # type: ignore[return-value]

    def head(self) -> bytes:
        """Return the first bytes."""
        if self.archive is None:
            with self.path.open("rb") as file:
                return file.read(HEAD)
        info = self.archive.infolist()[self.place - 1]
        with parsing(self), self.archive.open(info) as member:
            return bytes(member.read(HEAD))


class _Unpacked:
    """A member of an archive that is unpacked only as far as it is read, and kept to go back in."""

    def __init__(self, member: IO[bytes], size: int, path: Path) -> None:
        self.member, self.size, self.path = member, size, path
        self.kept, self.place = bytearray(), 0

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = max(0, offset + (0, self.place, self.size)[whence])
        return self.place

    def read(self, count: int) -> bytes:
        end = min(self.place + count, self.size)
        if end - len(self.kept) > FEW_BYTES:
            check_memory(self.path, 2 * end)
        while len(self.kept) < end:
            block = self.member.read(min(end - len(self.kept), 2**20))
            if not block:
                break
            self.kept += block
        found = bytes(self.kept[self.place : end])
        self.place += len(found)
        return found

    def close(self) -> None:
        self.member.close()


class _Clamped:
    """A file that a parser can't be led astray in.

    No more is read than it holds, whatever length it declares, and the items and elements that it
    is parsed into are counted: millions of empty ones fit a small file and fill the memory.
    """

    def __init__(self, file: IO[bytes], size: int, name: str, packed: int | None = None) -> None:
        self.file, self.size, self.label = file, size, name
        believed = size if packed is None else min(size, 8 * packed)
        self.limit = min(MAX_READS, FEW_READS + believed // 32)
        self.seek, self.tell, self.close = file.seek, file.tell, file.close
        self.items = self.reads = 0

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.file.tell())
        block = self.file.read(left if count < 0 else min(count, left))
        self.reads += 1
        self.items += len(block) == 8 and block[:4] in _ITEM
        if self.items > MAX_ITEMS or self.reads > self.limit:
            raise ScanError(
                f"{self.label}: has too many elements: it is damaged or hostile. Export it again."
            )
        return block

    def __enter__(self) -> _Clamped:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_TALKERS = ("pydicom", "highdicom")


class _Quiet:
    """pydicom and highdicom neither warn nor log while any thread is within: they repeat values."""

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0

    def __enter__(self) -> None:
        import logging

        import pydicom.config as config

        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.mode = config.settings._reading_validation_mode
                config.settings.reading_validation_mode = config.IGNORE
                self.levels = {log: log.level for log in map(logging.getLogger, _TALKERS)}
                for log in self.levels:
                    log.setLevel(logging.CRITICAL + 1)
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        import pydicom.config as config

        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.caught.__exit__(None, None, None)
                config.settings._reading_validation_mode = self.mode
                for log, level in self.levels.items():
                    log.setLevel(level)


quiet = _Quiet()


@contextmanager
def parsing(source: Source | Path) -> Iterator[None]:
    """Turn whatever pydicom and its plugins raise into a ScanError.

    Their own words are left out, since they may quote values of the file.
    """
    with quiet:
        try:
            yield
        except ScanError:
            raise
        except MemoryError as error:
            raise ScanError(f"{source}: not enough memory to read this DICOM file.") from error
        except Exception as error:  # pydicom raises anything at all on a hostile file
            # pydicom catches whatever happens while it reads an item, and raises an OSError.
            if any(isinstance(e, RecursionError) for e in (error, error.__context__)):
                raise ScanError(
                    f"{source}: this DICOM file nests its sequences too deeply: it is damaged or "
                    "hostile. Export it again from its source."
                ) from None
            raise ScanError(
                f"{source}: this DICOM file is damaged, truncated or of an unknown variant "
                f"({type(error).__name__}). Copy or export it again from its source."
            ) from None


def looks_like_dicom(head: bytes) -> bool:
    """Tell whether the first bytes are those of a DICOM file, with or without preamble."""
    return head[128:132] == b"DICM" or is_bare_dicom(head)


def find_sources(path: PathLike | Sequence[PathLike]) -> list[Source]:
    """List what may be DICOM: the file itself, the files of a folder, an archive or a list.

    Folders are searched to any depth; hidden files are left out, and a folder that is reached twice
    through links is searched once.

    Raises:
        ScanError: nothing there, too many files, an archive with unsafe or encrypted members.
    """
    if not isinstance(path, str | os.PathLike):
        found = [source for one in path for source in find_sources(one)]
        if not found:
            raise ScanError("A DICOM series needs at least one file; the list of paths is empty.")
        return found
    place = Path(path)
    try:
        if place.is_dir():
            return list(_walk(place))
        source = _of_file(place)
        if source is None:
            raise ScanError(f"{place}: no such file or folder.")
        with place.open("rb") as file:
            packed = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise ScanError(
            f"{place}: can't be read ({error.strerror}). Check the rights of what is in it."
        ) from error
    return _members(place) if packed else [source]


def _of_file(path: Path) -> Source | None:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(state.st_mode):
        return None
    mark = f"{state.st_ino}:{state.st_ctime_ns}"
    return Source(path, state.st_size, state.st_mtime_ns, mark=mark)


def _walk(folder: Path) -> Iterator[Source]:
    names = (n for n in walk_files(folder) if Path(n).name.upper() != "DICOMDIR")
    for count, name in enumerate(names, start=1):
        if count > MAX_FILES:
            raise ScanError(
                f"{folder}: holds more than {MAX_FILES} files. Name a folder further down."
            )
        source = _of_file(folder / name)
        if source is not None and source.size > 0:
            yield source


def _members(path: Path) -> list[Source]:
    state = path.stat()
    with decoding(path, "zip archive"):
        archive = zipfile.ZipFile(path)
        infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise ScanError(
            f"{path}: has {len(infos)} files in it, the limit is {MAX_MEMBERS}. Unpack it, if you "
            "trust it, and give the folder."
        )
    unpacked = sum(info.file_size for info in infos)
    if unpacked > MAX_UNPACKED or unpacked > MAX_RATIO * state.st_size + 2**20:
        raise ScanError(
            f"{path}: would unpack to {unpacked} bytes, more than an archive of "
            f"{state.st_size} bytes may. It is damaged or hostile. Pack the files again."
        )
    for place, info in enumerate(infos, 1):
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts or name[1:2] == ":":
            raise ScanError(
                f"{path}: file {place} in it has a name that points outside the archive. Don't "
                "trust it; pack the files again."
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ScanError(f"{path}: file {place} in it is a link. Pack the files themselves.")
        if info.flag_bits & 1:
            raise ScanError(f"{path}: is encrypted. Unpack it and give the folder.")
    return [
        Source(path, info.file_size, state.st_mtime_ns, place, archive=archive)
        for place, info in enumerate(infos, 1)
        if info.file_size and not info.filename.endswith("/") and not _hidden(info.filename)
    ]


def _hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    index = name.upper().endswith("DICOMDIR") and parts[-1].upper() == "DICOMDIR"
    return index or any(p.startswith((".", "__MACOSX")) for p in parts)


def read_header(source: Source) -> tuple[Dataset, int | None]:
    """Parse a file up to its pixels.

    Returns:
        The data set, and the declared bytes of the pixels: -1 where they are encapsulated, None
        where there are none.

    Raises:
        ScanError: no DICOM, damaged, nested too deeply.
    """
    with parsing(source), _opened(source) as file:
        dataset = _parse(source, file, stop_before_pixels=True)
        return dataset, _pixel_bytes(file, dataset)


def read_whole(source: Source) -> Dataset:
    """Parse a file with its pixels; errors as ``read_header``."""
    with parsing(source), _opened(source) as file:
        return _parse(source, file, stop_before_pixels=False)


def _parse(source: Source, file: IO[bytes], stop_before_pixels: bool) -> Dataset:
    import pydicom

    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)
    dataset.buffer = dataset.filename = None  # don't keep the file
    # A sequence of known length is parsed when it is asked for: count its items before.
    raw = [dataset.get_item(tag) for tag in list(dataset.keys()) if tag != 0x7FE00010]
    values = (v for v in (getattr(one, "value", None) for one in raw) if isinstance(v, bytes))
    if sum(v.count(_ITEM[0]) + v.count(_ITEM[1]) for v in values) > MAX_ITEMS:
        raise ScanError(
            f"{source}: has too many elements: it is damaged or hostile. Export it again."
        )
    return dataset


@contextmanager
def _opened(source: Source) -> Iterator[IO[bytes]]:
    """Open a DICOM file; a deflated one is unpacked within bounds."""
    if not looks_like_dicom(source.head()):
        raise ScanError(f"{source}: is no DICOM file.")
    with source.open() as file:
        yield _inflated(file, source) if _deflated(file) else file


def _deflated(file: IO[bytes]) -> bool:
    """Look at the transfer syntax; leave a deflated file behind its meta information."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    head = file.read(132)
    file.seek(132 if head[128:] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)  # type: ignore[arg-type]
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return True
    file.seek(0)
    return False


def _inflated(file: IO[bytes], source: Source) -> IO[bytes]:
    """Return the same file, not deflated."""
    from pydicom.uid import ExplicitVRLittleEndian

    limit = min(MAX_INFLATED, MAX_RATIO * source.size + 2**20, memory_limit() // 3)
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    data = machine.decompress(file.read(), limit)
    if machine.unconsumed_tail:
        raise ScanError(
            f"{source}: unpacks to more than {limit} bytes, so it is damaged or hostile. "
            "Export it again."
        )
    if not machine.eof:
        raise ScanError(f"{source}: truncated. Copy it again from its source.")
    uid = ExplicitVRLittleEndian.encode() + b"\0"
    meta = b"\x02\0\x10\0UI" + len(uid).to_bytes(2, "little") + uid
    whole = b"\0" * 128 + b"DICM" + meta + data
    return _Clamped(BytesIO(whole), len(whole), str(source), source.size)  # type: ignore[return-value]


def _pixel_bytes(file: IO[bytes], dataset: Dataset) -> int | None:
    """Return the length of the pixel element that the file stands before, as far as it is there."""
    implicit, little = dataset.original_encoding
    order = "little" if little else "big"
    head = file.read(12)
    if len(head) < 8 or int.from_bytes(head[:2], order) != 0x7FE0:  # type: ignore[arg-type]
        return None
    # In an explicit file the header of the pixels alone may be implicit; pydicom reads that too.
    implicit = implicit or head[4:6] not in (b"OW", b"OB", b"UN", b"OF", b"OD")
    raw = head[4:8] if implicit else head[8:12]
    length = int.from_bytes(raw, order)  # type: ignore[arg-type]
    if length == 0xFFFFFFFF:
        return -1
    start = file.tell() - (4 if implicit else 0)
    return min(length, max(0, file.seek(0, 2) - start))
