"""Time of ``normscan --help`` and ``import normscan`` as whole processes: python benchmarks/startup.py.

Writes benchmarks/results/startup.json: minimum and median of ten runs each, beside an empty Python.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import normscan": [sys.executable, "-c", "import normscan"],
    "normscan --help": [sys.executable, "-m", "normscan.cli.main", "--help"],
    "normscan methods": [sys.executable, "-m", "normscan.cli.main", "methods"],
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    figures = {}
    for name, command in COMMANDS.items():
        seconds = []
        for _ in range(RUNS):
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begun)
        figures[name] = {"min": min(seconds), "median": statistics.median(seconds)}
        print(f"{name:<18} min {min(seconds):.3f} s  median {statistics.median(seconds):.3f} s")
    path = Path(__file__).parent / "results" / "startup.json"
    path.write_text(
        json.dumps({"command": "python benchmarks/startup.py", "seconds": figures}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
