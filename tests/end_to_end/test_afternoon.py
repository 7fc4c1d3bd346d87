"""The page "From the scanner to the viewer in an afternoon": its files and commands, as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import node as N
from tests.support.orthanc import PLUGIN, PROGRAM

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def page(ports):
    """The files and the commands of sections 2 to 4, on ports that are free."""
    text = (ROOT / "docs" / "howto" / "afternoon.md").read_text()
    for known in ("4242", "8042"):
        text = text.replace(known, ports.setdefault(known, str(N.free_port())))
    text = text[text.index("## 2.") : text.index("## 5.")]
    files, commands = {}, []
    for head, block in BLOCK.findall(text):
        if title := re.search(r'title="([^"]+)"', head):
            files[title[1]] = block.replace('"1min"', '"2s"').replace('"StableAge": 10',
                                                                     '"StableAge": 1')  # fmt: skip
        else:
            commands += block.splitlines()
    return files, commands


def test_the_commands_of_the_page(tmp_path):
    programs = ("dcmsend", "curl")
    if not Path(PROGRAM).exists() or not PLUGIN.exists() or not all(map(shutil.which, programs)):
        pytest.skip("Orthanc, its DICOMweb plugin, dcmtk or curl isn't installed")
    (tmp_path / "detectors").mkdir()
    N.make_detector(tmp_path / "fit").rename(tmp_path / "detectors" / "head")
    N.series(tmp_path, "study")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "normscan").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c "
        "'import sys; from normscan.cli.main import main; sys.exit(main())' \"$@\"\n"
    )
    (bin_ / "normscan").chmod(0o755)
    path = os.pathsep.join([str(bin_), os.environ["PATH"], "/usr/sbin"])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    ports: dict[str, str] = {}
    files, commands = page(ports)
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def shell(line):
        return subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip

    running = []
    try:
        for line in commands:
            if line.startswith(("Orthanc", "normscan node --config")):
                log = (tmp_path / f"{line.split()[0]}.log").open("w")
                running.append(subprocess.Popen(
                    line.split(), cwd=tmp_path, env=environment, stdout=log, stderr=log
                ))  # fmt: skip
                if line.startswith("Orthanc"):
                    url = f"http://127.0.0.1:{ports['8042']}/system"
                    N.wait_for(
                        lambda url=url: shell(f"curl -sfu node:CHANGE-ME {url}").stdout != ""
                    )
            elif line.startswith("normscan node status"):
                N.wait_for(lambda line=line: re.search(r"done +1\b", shell(line).stdout), 120)
            elif line.startswith("curl"):
                (series,) = json.loads(shell(line).stdout)
                assert series["00080060"]["Value"] == ["SR"]
            else:
                done = shell(line)
                assert done.returncode == 0, done.stderr
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)
    assert len(running) == 2 and len(commands) == 7
    # The configuration lets nobody store but the scanner.
    assert json.loads(files["orthanc.json"])["DicomAlwaysAllowStore"] is False
