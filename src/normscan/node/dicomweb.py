"""Archives that speak HTTP: DICOMweb (QIDO-RS, WADO-RS, STOW-RS), and Orthanc's own interface."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from normscan.errors import NormscanError
from normscan.node.config import Login, Source, Stow
from normscan.node.rules import Facts

TIMEOUT = 60.0  # s without a byte
PAGE = 200  # series a question


@dataclass(frozen=True)
class Offered:
    """A series that an archive has.

    Attributes:
        place: how the archive finds it.
        uid: Series Instance UID.
        count: objects in it.
        facts: what is known of it without fetching it; empty where nothing is.
    """

    place: tuple[str, ...]
    uid: str
    count: int
    facts: Facts


class Archive(Protocol):
    """An archive that may be asked."""

    def news(self, since: int) -> tuple[list[Offered], int]:
        """Return series that became complete after a mark, and the new mark."""

    def sweep(self) -> Iterator[Offered]:
        """Yield all series of the last days."""

    def fetch(self, series: Offered, folder: Path) -> None:
        """Write the objects of a series into a folder."""


def archive(source: Source) -> Archive:
    """Return the archive of a source."""
    return Orthanc(source) if source.kind == "orthanc" else DicomWeb(source)


@contextmanager
def _asking(login: Login) -> Iterator[None]:
    """Say which archive failed and how; the words of libraries may hold values of objects."""
    import requests

    where = urlsplit(login.url).netloc
    try:
        yield
    except requests.HTTPError as error:
        code = "" if error.response is None else f" ({error.response.status_code})"
        raise NormscanError(f"the archive {where} refused a request{code}.") from None
    except requests.RequestException:
        raise NormscanError(f"the archive {where} does not answer.") from None
    except (ValueError, KeyError, TypeError, LookupError) as error:
        kind = type(error).__name__
        raise NormscanError(f"the archive {where} gave an answer that is none ({kind}).") from None


def _session(login: Login) -> Any:
    import requests

    session, secret = requests.Session(), login.login()
    if ":" in secret:
        user, _, password = secret.partition(":")
        session.auth = (user, password)
    elif secret:
        session.headers["Authorization"] = f"Bearer {secret}"
    if login.authorities is not None:
        session.verify = str(login.authorities)
    return session


def _client(login: Login) -> Any:
    from dicomweb_client.web import DICOMwebClient

    client = DICOMwebClient(login.url, session=_session(login))
    client.set_http_retry_params(retry=False)  # the node itself tries again
    return client


def stow(files: list[Path], to: Stow) -> None:
    """Send DICOM files by STOW-RS.

    Raises:
        NormscanError: the archive doesn't answer, or doesn't keep one of them.
    """
    from pydicom import dcmread

    with _asking(to):
        answer = _client(to).store_instances([dcmread(path) for path in files])
    if failed := answer.get("FailedSOPSequence"):
        raise NormscanError(
            f"the archive {urlsplit(to.url).netloc} did not keep {len(failed)} of {len(files)} results."
        )


class DicomWeb:
    """An archive that speaks DICOMweb; it has no news, so sweeps find everything.

    Args:
        source: of the configuration.
        client: of dicomweb-client; made from the source by default.
    """

    def __init__(self, source: Source, client: Any = None) -> None:
        self.source = source
        self.client = _client(source) if client is None else client

    def news(self, since: int) -> tuple[list[Offered], int]:
        return [], since

    def sweep(self) -> Iterator[Offered]:
        wanted = [
            "Modality", "SeriesDescription", "BodyPartExamined", "NumberOfSeriesRelatedInstances",
        ]  # fmt: skip
        filters, offset = {"StudyDate": f"{_first(self.source)}-"}, 0
        while True:
            with _asking(self.source):
                page = self.client.search_for_series(
                    fields=wanted, search_filters=filters, limit=PAGE, offset=offset
                )
                found = [self._offered(entry) for entry in page]
            yield from found
            offset += len(page)
            if len(page) < PAGE:
                return

    def _offered(self, entry: dict[str, Any]) -> Offered:
        from pydicom.dataset import Dataset

        data = Dataset.from_json(entry)
        facts = Facts(
            str(data.get("Modality", "")).upper(),
            str(data.get("SeriesDescription", "")),
            str(data.get("BodyPartExamined", "")).upper(),
        )
        uid = str(data.SeriesInstanceUID)
        count = int(data.get("NumberOfSeriesRelatedInstances") or 0)
        return Offered((str(data.StudyInstanceUID), uid), uid, count, facts)

    def fetch(self, series: Offered, folder: Path) -> None:
        with _asking(self.source):
            objects = self.client.iter_series(
                *series.place, media_types=(("application/dicom", "*"),)
            )
            for number, dataset in enumerate(objects):
                dataset.save_as(folder / f"{number}.dcm", enforce_file_format=True)


class Orthanc:
    """Orthanc by its own interface, whose list of changes tells at once what became stable.

    Args:
        source: of the configuration.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.url = source, source.url.rstrip("/")
        self.session = _session(source)

    def _get(self, path: str, **options: Any) -> Any:
        answer = self.session.get(self.url + path, timeout=TIMEOUT, **options)
        answer.raise_for_status()
        return answer

    def news(self, since: int) -> tuple[list[Offered], int]:
        import requests

        found = []
        with _asking(self.source):
            page = self._get("/changes", params={"since": since, "limit": 500}).json()
            for change in page["Changes"]:
                if change["ChangeType"] != "StableSeries":
                    continue
                try:
                    found.append(self._offered(self._get(f"/series/{change['ID']}").json()))
                except requests.HTTPError:
                    pass  # deleted meanwhile
            return found, int(page["Last"])

    def sweep(self) -> Iterator[Offered]:
        question = {
            "Level": "Series", "Expand": True, "Query": {"StudyDate": f"{_first(self.source)}-"},
        }  # fmt: skip
        with _asking(self.source):
            answer = self.session.post(f"{self.url}/tools/find", json=question, timeout=TIMEOUT)
            answer.raise_for_status()
            found = [self._offered(entry) for entry in answer.json()]
        yield from found

    def _offered(self, entry: dict[str, Any]) -> Offered:
        tags = entry["MainDicomTags"]
        described = f"{tags.get('SeriesDescription', '')}\n{tags.get('ProtocolName', '')}"
        facts = Facts(
            tags.get("Modality", "").upper(), described, tags.get("BodyPartExamined", "").upper()
        )
        place = (_plain(entry["ID"]),)
        return Offered(place, tags["SeriesInstanceUID"], len(entry["Instances"]), facts)

    def fetch(self, series: Offered, folder: Path) -> None:
        with _asking(self.source):
            for instance in self._get(f"/series/{series.place[0]}").json()["Instances"]:
                name = _plain(instance)
                answer = self._get(f"/instances/{name}/file", stream=True)
                with (folder / f"{name}.dcm").open("wb") as file:
                    for block in answer.iter_content(2**20):
                        file.write(block)


def _plain(name: str) -> str:
    """Return a name of Orthanc's, or refuse what could lead elsewhere."""
    if not re.fullmatch(r"[0-9a-fA-F-]{1,64}", name):
        raise ValueError("no identifier of Orthanc")
    return name


def _first(source: Source) -> str:
    return (date.today() - timedelta(days=source.days)).strftime("%Y%m%d")
