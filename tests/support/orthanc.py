"""Orthanc as a process of its own, on ports of loopback, with its DICOMweb plugin."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import free_port, wait_for

PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LOGIN = "node:orthanc-17"


class Orthanc:
    """An archive that may be killed and started again.

    Args:
        folder: where it keeps what it has.
        stable: s without news after which it calls a series complete.
    """

    def __init__(self, folder: Path, stable: int = 1) -> None:
        if not Path(PROGRAM).exists() or not PLUGIN.exists():
            pytest.skip("Orthanc and its DICOMweb plugin aren't installed")
        import requests

        self.folder, self.port, self.dicom = folder, free_port(), free_port()
        folder.mkdir(parents=True)
        user, _, password = LOGIN.partition(":")
        (folder / "login").write_text(LOGIN)
        (folder / "orthanc.json").write_text(json.dumps({
            "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.port, "DicomPort": self.dicom, "DicomAet": "PACS",
            "DicomCheckCalledAet": True, "DicomAlwaysAllowStore": False,
            "DicomCheckModalityHost": True, "DicomModalities": {"node": ["NORMSCAN", "127.0.0.1", 1]},
            "RemoteAccessAllowed": False, "AuthenticationEnabled": True,
            "RegisteredUsers": {user: password}, "StableAge": stable, "SyncStorageArea": True,
            "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }))  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = requests.Session()
        self.session.auth = (user, password)
        self.start()

    def start(self) -> None:
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, str(self.folder / "orthanc.json")], stdout=log, stderr=log
            )
        wait_for(self.answers, 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        import requests

        try:
            return self.session.get(f"{self.url}/system", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def put(self, files: list[Path]) -> None:
        for path in files:
            self.session.post(f"{self.url}/instances", data=path.read_bytes()).raise_for_status()

    def get(self, path: str) -> Any:
        answer = self.session.get(self.url + path)
        answer.raise_for_status()
        return answer.json()

    def modalities(self) -> dict[str, Counter[str]]:
        """The modalities of the series of each study, by its Study Instance UID."""
        return {
            study["MainDicomTags"]["StudyInstanceUID"]: Counter(
                self.get(f"/series/{series}")["MainDicomTags"]["Modality"]
                for series in study["Series"]
            )
            for study in self.get("/studies?expand")
        }

    def __enter__(self) -> Orthanc:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
