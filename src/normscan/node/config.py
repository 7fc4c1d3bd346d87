"""The file ``node.toml``: what the node listens to, which detector scores what, where results go."""

from __future__ import annotations

import os
import re
import ssl
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from normscan.errors import ArgumentError

UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def seconds(text: str | float) -> float:
    """Return a time such as ``30d``, ``12h``, ``5min`` or ``10s`` in seconds; a number is seconds.

    Raises:
        ArgumentError: another word.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    found = re.fullmatch(r"\s*([0-9.]+)\s*(s|min|h|d)?\s*", str(text))
    try:
        if found:
            return float(found[1]) * UNITS[found[2] or "s"]
    except ValueError:
        pass
    raise ArgumentError(f"'{text}' is no time. Write it as 30d, 12h, 5min or 10s.")


def _seconds(value: Any) -> float:
    try:
        return seconds(value)
    except ArgumentError as error:
        raise ValueError(str(error)) from None


def _rooted(path: Path, info: ValidationInfo) -> Path:
    """Relative paths begin at the folder of the file."""
    return (info.context or {}).get("root", Path()) / path.expanduser()


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from None
    return text


def _title(text: str) -> str:
    if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", text) or not text.strip():
        raise ValueError("an AE title has 1 to 16 printable characters and no backslash")
    return text.strip()


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]
File = Annotated[Path, AfterValidator(_rooted)]
Title = Annotated[str, AfterValidator(_title)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Part(BaseModel):
    """A table of the file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Part):
    """Certificates of a connection; both sides show one.

    Attributes:
        certificate: PEM file of the node's own.
        key: PEM file of its private key.
        authorities: PEM file of those whose certificates the other side may show.
    """

    certificate: File
    key: File
    authorities: File

    def context(self, listening: bool) -> ssl.SSLContext:
        """Return the context of one side: TLS 1.2 or newer, the other's certificate is asked for.

        Raises:
            ArgumentError: a file that is missing or no certificate.
        """
        purpose = ssl.Purpose.CLIENT_AUTH if listening else ssl.Purpose.SERVER_AUTH
        try:
            context = ssl.create_default_context(purpose, cafile=self.authorities)
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise ArgumentError(
                f"the certificates {self.certificate}, {self.key}, {self.authorities} can't be used: "
                f"{error.strerror or error}. Each is a PEM file that this user may read."
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class Dicom(Part):
    """The listener.

    Attributes:
        host: address that it listens on.
        port: of it.
        ae_title: that callers must call.
        callers: AE titles that may call.
        tls: certificates; without them nothing is encrypted.
        associations: so many at once.
        largest_mb: of one object.
        timeout: of a silent connection.
    """

    host: str = "127.0.0.1"
    port: Port = 11112
    ae_title: Title = "NORMSCAN"
    callers: list[Title] = Field(min_length=1)
    tls: Tls | None = None
    associations: int = Field(10, ge=1)
    largest_mb: float = Field(2048, gt=0)
    timeout: Seconds = 60.0


class Web(Part):
    """The REST server.

    Attributes:
        host: address that it listens on.
        port: of it.
        token_file: a token a line; any of them opens.
        largest_mb: of an upload.
        unpacked_mb: of what a zip archive unpacks to.
        most_waiting: jobs; beyond it uploads are asked to come later.
        timeout: of an upload.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    token_file: File
    largest_mb: float = Field(1024, gt=0)
    unpacked_mb: float = Field(4096, gt=0)
    most_waiting: int = Field(1000, ge=1)
    timeout: Seconds = 600.0

    def tokens(self) -> list[str]:
        """Return the tokens.

        Raises:
            ArgumentError: no such file, or one without a token of 16 letters or more.
        """
        try:
            lines = [line.strip() for line in self.token_file.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError):
            raise ArgumentError(
                f"{self.token_file}: can't be read. Write a token into it: openssl rand -hex 32."
            ) from None
        tokens = [line for line in lines if line]
        if not tokens or min(map(len, tokens)) < 16:
            raise ArgumentError(
                f"{self.token_file}: holds no token, or one of fewer than 16 letters. Write one into "
                "it: openssl rand -hex 32."
            )
        return tokens


class Destination(Part):
    """An archive that takes the results by C-STORE.

    Attributes:
        host: of it.
        port: of it.
        ae_title: of it.
        calling: AE title that the node calls itself.
        tls: certificates.
    """

    host: str
    port: Port
    ae_title: Title
    calling: Title = "NORMSCAN"
    tls: Tls | None = None


class Login(Part):
    """Who the node is for an archive that speaks HTTP.

    Attributes:
        url: of the archive.
        login_file: holds ``user:password``, or a token alone.
        authorities: PEM file of those who may vouch for its certificate; the system's by default.
    """

    url: str = Field(pattern=r"^https?://[^\s@]+$")
    login_file: File | None = None
    authorities: File | None = None

    def login(self) -> str:
        """Return what the file holds, or an empty string.

        Raises:
            ArgumentError: it can't be read.
        """
        if self.login_file is None:
            return ""
        try:
            return self.login_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ArgumentError(
                f"{self.login_file}: can't be read. It holds user:password, or a token."
            ) from None


class Stow(Login):
    """An archive that takes the results by DICOMweb (STOW-RS)."""


class Source(Login):
    """An archive that is asked for new series.

    Attributes:
        name: for the log and the metrics.
        kind: ``orthanc`` (its own REST interface) or ``dicomweb``.
        every: s between two sweeps.
        days: that a sweep looks back, by Study Date.
    """

    name: str = Field(pattern=r"^[\w .+-]{1,64}$")
    kind: Literal["orthanc", "dicomweb"]
    every: Seconds = 120.0
    days: int = Field(2, ge=1)


class Rule(Part):
    """Which series a detector scores; the first rule that fits, and whose detector knows them.

    Attributes:
        name: for the log and the metrics.
        detector: run folder.
        modality: such as MR; any by default.
        description: regular expression that is found in Series Description or Protocol Name,
            whatever the case; any by default.
        body_part: Body Part Examined; any by default.
        without: as ``description``, of series that the rule leaves out.
    """

    name: str = Field(pattern=r"^[\w .+-]{1,64}$")
    detector: File
    modality: list[str] = []
    description: Pattern = ""
    body_part: list[str] = []
    without: Pattern = ""


class Drift(Part):
    """The watch for scans that no longer are what they were.

    Attributes:
        alpha: chance of a false alarm for each detector and scanner in a window, at most.
        window: scans after which the tests begin anew.
    """

    alpha: float = Field(0.01, gt=0, lt=1)
    window: int = Field(1000, ge=20)


class Config(Part):
    """The whole file.

    Attributes:
        folder: queue, scans, results and audit log; of this node alone.
        rules: in their order.
        dicom: the listener, if any.
        web: the REST server, if any.
        sources: archives that are asked for new series.
        destinations: each gets all results.
        drift: the watch over their scores.
        scorers: processes that score.
        threads: of the arithmetic of each.
        device: auto, cpu or cuda.
        quiet: a series is taken for complete when nothing came for so long.
        patience: the same for one whose headers tell of images that didn't come.
        lease: a job whose process died is free again after it.
        give_up: results that no archive takes are given up after it.
        retention: scans and results of ended jobs are deleted after it.
        quota_gb: of scans and results; beyond it nothing is taken.
        refusals: ``report`` writes a structured report of refused series, ``silent`` doesn't.
        map: ``float32`` or ``uint16`` parametric maps.
        segments: ``binary``, or ``labelmap`` for archives that know it.
        page: also send the page about the finding as Encapsulated PDF.
        trusted: public keys (.pub files of minisign's, or folders of them); a detector that none of
            them signed isn't loaded. Any is by default.
        scanners: names of scanners by their eight hexadecimal digits.
    """

    folder: File
    rules: list[Rule] = Field(min_length=1)
    dicom: Dicom | None = None
    web: Web | None = None
    sources: list[Source] = []
    destinations: list[Destination | Stow] = []
    drift: Drift = Drift(alpha=0.01, window=1000)
    scorers: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    device: str = "auto"
    quiet: Seconds = 30.0
    patience: Seconds = 300.0
    lease: Seconds = 60.0
    give_up: Seconds = 3 * 86400.0
    retention: Seconds = 30 * 86400.0
    quota_gb: float = Field(50, gt=0)
    refusals: Literal["report", "silent"] = "report"
    map: Literal["float32", "uint16"] = "float32"
    segments: Literal["binary", "labelmap"] = "binary"
    page: bool = False
    trusted: list[File] = []
    scanners: dict[str, str] = {}

    @model_validator(mode="after")
    def _remembers(self) -> Config:
        """A sweep must still know what was done: else it is fetched and scored again."""
        longest = max((source.days for source in self.sources), default=0)
        if self.sources and self.retention < (longest + 1) * UNITS["d"]:
            raise ValueError(
                f"retention must be at least {longest + 1}d: a sweep looks {longest} days back, and "
                "would fetch again what is forgotten by then"
            )
        return self

    @property
    def quota(self) -> int:
        """Bytes of scans and results that are kept."""
        return round(self.quota_gb * 1e9)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Config:
        """Read the file; its relative paths begin where it lies.

        Raises:
            ArgumentError: no such file, no TOML, or a value that can't be; all of them at once.
        """
        file = Path(path)
        try:
            values = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise ArgumentError(
                f"{file}: {error.strerror}. Name the node's configuration: --config node.toml."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ArgumentError(f"{file}: is no TOML ({error}).") from None
        try:
            return cls.model_validate(values, context={"root": file.resolve().parent})
        except ValidationError as error:
            raise ArgumentError(f"{file}: {_told(error)}.") from None


def _told(error: ValidationError) -> str:
    """Say what is wrong, in one line; values are left out: they may be secrets."""
    lines = (
        f"{'.'.join(map(str, one['loc'])) or 'the file'}: "
        f"{one['msg'].removeprefix('Value error, ').rstrip('.')}"
        for one in error.errors(include_url=False, include_input=False)
    )
    return "; ".join(lines)
