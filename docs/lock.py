"""Write ``requirements.lock``: all pinned packages with the hashes of their files.

``python docs/lock.py`` asks pip where each package of ``constraints.txt`` would come from and notes the
SHA-256 of that file, for the Python and machine that it runs on; nothing is installed. torch is left
out: its file depends on the accelerator.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
APART = ("torch", "torchvision")
HEAD = """\
# Pinned and hash-checked, for {python} on {machine}, by `make lock`:
#   pip install torch=={torch}                                # its file depends on the accelerator
#   pip install --no-deps --require-hashes -r requirements.lock
#   pip install --no-deps normscan
"""


def main() -> None:
    """Write the file."""
    pins = dict(
        re.fullmatch(r"([\w.-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    torch = pins["torch"]
    wanted = [f"{name}=={version}" for name, version in pins.items() if name not in APART]
    hashes = hashes_of(wanted)
    lines = [f"{pin} \\\n    --hash=sha256:{hashes[pin]}\n" for pin in wanted]
    python = f"{platform.python_implementation()} {platform.python_version()}"
    head = HEAD.format(python=python, machine=f"{platform.machine()} {sys.platform}", torch=torch)
    (ROOT / "requirements.lock").write_text(head + "".join(lines), encoding="utf-8")
    print(f"{len(lines)} packages", file=sys.stderr)


def hashes_of(pins: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the file that pip would install for each pin."""
    with tempfile.TemporaryDirectory() as work:
        report, asked = Path(work) / "report.json", Path(work) / "asked.txt"
        asked.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"]
        command += ["--no-deps", "--only-binary", ":all:", "--prefer-binary"]
        subprocess.run([*command, "--report", str(report), "-r", str(asked)], check=True)
        made = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {
        re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower(): one["download_info"]
        for one in made
    }
    name = {pin: re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins}
    return {pin: found[name[pin]]["archive_info"]["hashes"]["sha256"] for pin in pins}


if __name__ == "__main__":
    main()
