"""Write ``requirements.lock``: all pinned packages with the hashes of their files.

``python docs/lock.py`` asks pip where each package of ``constraints.txt`` would come from and notes the
SHA-256 of that file, for the Python and machine that it runs on; nothing is installed. What pip finds
nowhere is named. torch is left out: its file depends on the accelerator.
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


def main() -> int:
    """Write the file; 1 where a package was not found."""
    pins = dict(
        re.fullmatch(r"([\w.-]+)==(\S+)", line).groups()  # type: ignore[union-attr]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    torch = pins["torch"]
    wanted = [f"{name}=={version}" for name, version in pins.items() if name not in APART]
    lines, lacking = [], []
    for pin in wanted:
        if found := hash_of(pin):
            lines.append(f"{pin} \\\n    --hash=sha256:{found}\n")
        else:
            lacking.append(pin)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    head = HEAD.format(python=python, machine=f"{platform.machine()} {sys.platform}", torch=torch)
    (ROOT / "requirements.lock").write_text(head + "".join(lines), encoding="utf-8")
    print(f"{len(lines)} packages; not found: {', '.join(lacking) or 'none'}", file=sys.stderr)
    return bool(lacking)


def hash_of(pin: str) -> str:
    """Return the SHA-256 of the file that pip would install, an empty string if it finds none."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "-q"]
        command += ["--no-deps", "--only-binary", ":all:", "--report", report.name, pin]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return ""
        about = json.loads(Path(report.name).read_text(encoding="utf-8"))
    archive = about["install"][0]["download_info"]["archive_info"]
    return str(archive["hashes"]["sha256"])


if __name__ == "__main__":
    sys.exit(main())
