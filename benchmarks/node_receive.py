"""How many objects a second the node takes, and what each thing that it does for them costs.

    python benchmarks/node_receive.py [--rounds 5]

Listeners in processes of their own take turns in one run, so that what else the machine does hits
all of them alike: pynetdicom that only answers, one that writes, calls fsync and renames, the node
as it is, and the node without what was found to make it quick. Writes a section of
``benchmarks/results/node.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

BARE = """
import os, sys
from pathlib import Path
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, StoragePresentationContexts, evt
def keep(event):
    if KEEP:
        path = FOLDER / f"{event.request.AffectedSOPInstanceUID}.dcm"
        with path.with_suffix(".part").open("wb") as file:
            file.write(event.encoded_dataset())
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".part"), path)
    return 0
ae = AE("NORMSCAN")
for context in StoragePresentationContexts:
    ae.add_supported_context(context.abstract_syntax, AllTransferSyntaxes)
ae.start_server(("127.0.0.1", PORT), block=True, evt_handlers=[(evt.EVT_C_STORE, keep)])
"""
NODE = """
from pathlib import Path
from normscan.node import Config, Store, receive
from normscan.node.process import Stop
SLOWER
receive.listen(Store(Config.read(CONFIG)), Stop().on_signals())
"""
LISTENERS = {
    "pynetdicom alone, nothing kept": (BARE, {"KEEP": "False"}),
    "pynetdicom, fsync and rename": (BARE, {"KEEP": "True"}),
    "the node": (NODE, {"SLOWER": ""}),
    "the node, acknowledging when TCP likes to": (
        NODE, {"SLOWER": "receive.acknowledge = lambda link: None"}
    ),
    "the same, in pieces of 16 kB, each row waiting for the disk (as it was)": (
        NODE,
        {"SLOWER": "receive.acknowledge = lambda link: None; receive.PIECE = 16382\n"
         "Queue = receive.Store.__init__.__globals__['Queue']\n"
         "Queue.__setattr__ = lambda self, name, value: object.__setattr__("
         "self, name, 'full' if name == 'synchronous' else value)"},
    ),
}  # fmt: skip


def measure(folder: Path, code: str, words: dict[str, str], files: list[Path]) -> dict[str, float]:
    """Return objects a second of each sender."""
    from tests.support import node as N

    path = N.write_config(folder, folder / "run", top="quiet = 3600")
    config = N.Config.read(path)
    words = {"PORT": str(config.dicom.port), "FOLDER": f"Path({str(folder)!r})",
             "CONFIG": repr(str(path)), **words}  # fmt: skip
    for word, value in words.items():
        code = code.replace(word, value)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=None)
    try:

        def answers() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", config.dicom.port)) == 0

        N.wait_for(answers)
        half = len(files) // 2
        began = time.perf_counter()
        answers_ = N.call(config, files[:half])
        assert set(answers_) == {0}, answers_
        found = {"pynetdicom": half / (time.perf_counter() - began)}
        if shutil.which("dcmsend"):
            command = ["dcmsend", "-aet", "CALLER", "-aec", "NORMSCAN", "127.0.0.1"]
            began = time.perf_counter()
            subprocess.run([*command, str(config.dicom.port), *map(str, files[half:])], check=True)
            found["dcmsend"] = (len(files) - half) / (time.perf_counter() - began)
        return found
    finally:
        process.terminate()
        process.wait()


def enlarge(path: Path) -> None:
    """Give an image 320 x 320 pixels."""
    import pydicom

    data = pydicom.dcmread(path)
    data.Rows = data.Columns = 320
    data.PixelData = np.random.default_rng(0).bytes(2 * 320 * 320)
    data.save_as(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    from tests.support import node as N

    from node import write

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [p for k in range(20) for p in N.series(folder / "out", f"s{k}", seed=k)]
        for size in ("2 kB", "206 kB"):
            if size != "2 kB":
                [enlarge(path) for path in files]
            found: dict[str, list[dict[str, float]]] = {name: [] for name in LISTENERS}
            for turn in range(args.rounds):
                for number, (name, (code, words)) in enumerate(LISTENERS.items()):
                    place = folder / f"{size[:3].strip()}-{turn}-{number}"
                    found[name].append(measure(place, code, words, files))
            for name, turns in found.items():
                told = (
                    f"{np.median([t[sender] for t in turns]):.0f} ({sender})" for sender in turns[0]
                )
                rows.append((f"{name}, objects of {size}", ", ".join(told)))
    rows.append(("load of the machine meanwhile", f"{os.getloadavg()[0]:.1f}"))
    machine = f"{os.cpu_count()} cores, {platform.system()}"
    command = f"python benchmarks/node_receive.py --rounds {args.rounds} ({machine})"
    write("Objects received a second", command, rows)


if __name__ == "__main__":
    main()
