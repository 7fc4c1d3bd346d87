"""The node and a real Orthanc, each killed in mid-work: python benchmarks/node_orthanc.py.

Series go into Orthanc while it, the node and the node's processes are killed with SIGKILL in turn.
The node asks Orthanc (changes and sweeps) and puts results back by STOW. Needs the Debian packages
orthanc and orthanc-dicomweb; writes a section of ``benchmarks/results/node.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

TURN = ("orthanc", "score", "orthanc", "node", "pull", "orthanc", "send")
LINES = """
[[sources]]
name = "pacs"
kind = "orthanc"
url = "{url}"
login_file = "{login}"
every = "3s"
[[destinations]]
url = "{url}/dicom-web"
login_file = "{login}"
"""


def kills(folder: Path, run: Path, count: int, most: int) -> list[tuple[str, Any]]:
    """Put series into Orthanc while everything is killed; wait until all have their results."""
    import pydicom
    import requests
    from tests.support import node as N
    from tests.support.orthanc import Orthanc

    from node import children

    rng, killed = random.Random(0), Counter[str]()
    today = {"StudyDate": date.today().strftime("%Y%m%d")}
    made = [N.series(folder / "out", f"k{k}", seed=1000 + k, **today) for k in range(count)]
    studies = [str(pydicom.dcmread(f[0], stop_before_pixels=True).StudyInstanceUID) for f in made]
    with Orthanc(folder / "orthanc") as archive:
        lines = LINES.format(url=archive.url, login=archive.folder / "login")
        node = N.Running(N.write_config(folder / "node", run, top="lease = 20", end=lines))
        accepted: set[str] = set()
        stop = False

        def send() -> None:
            for files in made:
                for path in files:
                    while not stop:
                        try:
                            archive.put([path])
                        except requests.RequestException:
                            time.sleep(0.3)
                        else:
                            accepted.add(str(path))
                            break
                time.sleep(rng.uniform(0, 2))

        began = time.monotonic()
        sender = N.in_thread(send)
        while killed.total() < most:
            time.sleep(rng.uniform(2, 6))
            what = TURN[killed.total() % len(TURN)]
            if what == "orthanc":
                archive.kill()
                time.sleep(1)
                archive.start()
            elif what == "node":
                node.process.kill()
                node.process.wait()
                node.start()
            else:
                target = children(node.process.pid).get(what)
                if target is None:
                    continue
                os.kill(target, signal.SIGKILL)
            killed[what] += 1
        sender.join()
        queue = node.store.queue
        N.wait_for(lambda: queue.counts() == {"done": count}, 900)
        took = time.monotonic() - began
        there = archive.modalities()
        stop = True
        whole = Counter(MR=1, OT=1, SEG=1, SR=1)
        counts = [
            (s["MainDicomTags"]["Modality"], len(s["Instances"]))
            for s in archive.get("/series?expand")
        ]
        node.stop()
        return [
            ("kill -9", ", ".join(f"{n} x {what}" for what, n in killed.items())),
            ("series put into Orthanc, of 6 objects", count),
            ("series of which Orthanc lost an accepted object",
             sum(kind == "MR" and n != 6 for kind, n in counts)),
            ("series without all of map, segments and report in their study, once each",
             sum(there.get(study) != whole for study in studies)),
            ("results in other studies", len(set(there) - set(studies))),
            ("result series with more than one object",
             sum(kind != "MR" and n != 1 for kind, n in counts)),
            ("series scored a second time because more of them came",
             sum(job.round > 1 for job in queue.jobs())),
            ("seconds in all", round(took)),
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--series", type=int, default=40)
    args = parser.parse_args()
    from tests.support import node as N

    from node import write

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "detector").mkdir()
        rows = kills(folder, N.make_detector(folder / "detector"), args.series, args.kills)
    machine = f"{os.cpu_count()} cores, {platform.system()}"
    command = f"python benchmarks/node_orthanc.py --kills {args.kills} --series {args.series}"
    write("Killed in mid-work, beside Orthanc", f"{command} ({machine})", rows)


if __name__ == "__main__":
    main()
