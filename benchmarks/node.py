"""What the node stands: processes that are killed, uploads many at a time, a large object, hostility.

    python benchmarks/node.py [--kills 20] [--series 60] [--uploads 1000] [--large-mb 421]

Everything runs on loopback, against a node in processes of its own, with a mean-image detector on
volumes of 14 x 12 x 6 voxels: what is measured is the node, not a method. Writes
``benchmarks/results/node.md``; each part (``--only kills,uploads,large,hostile,drift``) replaces its
own section.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

OUT = Path(__file__).parent / "results" / "node.md"
HEAD = (
    "# What the node stands\n\nOne machine, loopback, other work beside it. Times vary with it.\n"
)


def children(parent: int) -> dict[str, int]:
    """Return the processes of the node by the part that they run."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text().rpartition(")")[2].split()
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(stat[1]) == parent and b"--part" in words:
            found[words[words.index(b"--part") + 1].decode()] = int(path.name)
    return found


def memory(process: int, which: str = "VmHWM") -> float:
    """Return MB of a process: the most it ever had, or ``VmRSS``."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.search(rf"{which}:\s+(\d+)", text)[1]) / 1000  # type: ignore[index]


class Hospital:
    """A node, an archive and a detector in a folder of their own."""

    def __init__(self, folder: Path, run: Path, **lines: str) -> None:
        from tests.support import node as N

        self.folder, self.archive = folder, N.Archive()
        path = N.write_config(folder / "node", run, self.archive.port, **lines)
        self.node = N.Running(path)
        self.node.listening()

    def __enter__(self) -> Hospital:
        return self

    def __exit__(self, *_: object) -> None:
        self.node.stop()
        self.archive.server.shutdown()

    def part(self, name: str) -> int:
        from tests.support import node as N

        N.wait_for(lambda: name in children(self.node.process.pid))
        return children(self.node.process.pid)[name]

    def leaks(self, words: tuple[bytes, ...]) -> int:
        """Files and logs that hold a planted word in any case; the database among them."""
        from tests.support import node as N

        told = (self.folder / "node" / "node.log").read_bytes() + N.written(self.node.store.folder)
        return sum(word in told.lower() for word in words)


def kills(folder: Path, run: Path, count: int, most: int) -> list[tuple[str, Any]]:
    """Kill the whole node, its listener, its scorer and its sender in turn while series come."""
    from tests.support import node as N

    rng, accepted, stop = random.Random(0), set(), threading.Event()
    made = [N.series(folder / "out", f"k{k}", seed=1000 + k) for k in range(count)]
    seconds: dict[str, float] = {}
    with Hospital(folder, run, top='lease = 20\nquiet = "15s"', web="") as place:

        def send() -> None:
            import pydicom

            for files in made:
                while True:
                    time.sleep(0.3)
                    try:
                        answers = N.call(place.node.config, files)
                    except Exception:
                        continue
                    good = [f for f, a in zip(files, answers, strict=False) if a == 0]
                    accepted.update(pydicom.dcmread(f).SOPInstanceUID for f in good)
                    if len(good) == len(files):
                        break

        began = time.monotonic()
        sender = N.in_thread(send)
        killed: Counter[str] = Counter()
        while killed.total() < most:
            what = ("node", "score", "receive", "node", "score", "send")[killed.total() % 6]
            time.sleep(rng.uniform(2, 6))
            try:
                target = place.node.process.pid if what == "node" else place.part(what)
                os.kill(target, signal.SIGKILL)
            except (ProcessLookupError, AssertionError):
                continue
            if what == "node":
                place.node.process.wait()
                place.node.start()
            killed[what] += 1
        sender.join()
        queue = place.node.store.queue
        N.wait_for(lambda: queue.counts() == {"done": count}, 900)
        seconds["all"] = time.monotonic() - began
        stop.set()
        kept = {p.name for p in (place.node.store.folder / "scans").glob("*/*")}
        from normscan.node.store import key_of

        reports = Counter(str(d.StudyInstanceUID) for d in place.archive.of("SR"))
        sources = {_study(files[0]) for files in made}
        twice = sum(n > 1 for n in reports.values())
        rounds = sum(job.round > 1 for job in queue.jobs())
        return [
            ("kill -9", ", ".join(f"{n} x {what}" for what, n in killed.items())),
            ("series sent, of 6 objects", count),
            ("accepted objects that were lost", len({f"{key_of(u)}.dcm" for u in accepted} - kept)),
            ("series without a result", len(sources - set(reports))),
            ("series with more than one result in the archive", twice),
            ("results in another study than their series", len(set(reports) - sources)),
            ("series of which more came after they were scored", rounds),
            ("results sent again, which the archive had", len(place.archive.received)
             - len(place.archive.objects)),
            ("seconds in all", round(seconds["all"])),
            ("planted identity found in logs, database, file names", place.leaks((b"geheim",))),
        ]  # fmt: skip


def _study(path: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def uploads(folder: Path, run: Path, count: int, at_once: int = 16) -> list[tuple[str, Any]]:
    """Send many uploads, 16 at a time, and wait until all are scored."""
    import httpx
    import nibabel
    from tests.support import node as N

    from normscan.io.dicom import read_dicom

    scan = read_dicom(N.series(folder / "one", "one")[0].parent)
    rng = np.random.default_rng(0)
    files = [
        nibabel.Nifti1Image(
            (scan.data[0] * rng.normal(1, 0.002, scan.shape)).astype(np.float32), scan.affine
        ).to_bytes()
        for _ in range(count)
    ]
    with Hospital(folder, run, web="most_waiting = 200") as place:
        web = place.node.config.web
        assert web is not None
        process = place.part("web")
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{web.port}", timeout=60,
            headers={"Authorization": f"Bearer {N.TOKEN}"},
        )  # fmt: skip
        N.wait_for(lambda: place.node.store.queue.tallies().get(("beat", "score")) is not None)
        before, times, full = memory(process, "VmRSS"), [], 0
        lock = threading.Lock()

        def send(body: bytes) -> str:
            nonlocal full
            while True:
                began = time.perf_counter()
                answer = client.post("/scans", content=body)
                with lock:
                    times.append(time.perf_counter() - began)
                    full += answer.status_code == 503
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                assert answer.status_code == 503 and answer.headers["Retry-After"]
                time.sleep(1)

        began = time.monotonic()
        with ThreadPoolExecutor(at_once) as pool:
            ids = list(pool.map(send, files))
        sent = time.monotonic() - began
        queue = place.node.store.queue
        N.wait_for(lambda: sum(queue.counts().get(s, 0) for s in ("waiting", "scoring")) == 0, 900)
        took = time.monotonic() - began
        told = [client.get(f"/scans/{key}").json()["state"] for key in ids]
        return [
            (f"uploads, {at_once} at a time", count),
            ("distinct jobs", len(set(ids))),
            ("what became of them", dict(Counter(told))),
            ("answers 503 with Retry-After while 200 waited", full),
            ("seconds until all were taken", round(sent)),
            ("seconds until all were scored", round(took)),
            ("scans a minute", round(60 * count / took)),
            ("answer, median and 99th percentile, ms",
             f"{1e3 * np.median(times):.0f}, {1e3 * np.quantile(times, 0.99):.0f}"),
            ("memory of the server before, most ever, MB", f"{before:.0f}, {memory(process):.0f}"),
        ]  # fmt: skip


def large(folder: Path, run: Path, megabytes: int) -> list[tuple[str, Any]]:
    """Send one large object by DICOM and one by HTTP; look at the memory of who takes it."""
    import httpx
    import pydicom
    from pynetdicom import _config
    from tests.support import node as N

    path = N.series(folder / "big", "big")[0]
    data = pydicom.dcmread(path)
    data.Rows = data.Columns = 1024
    data.NumberOfFrames = round(megabytes * 1e6 / 2 / 1024**2)
    data.PixelData = bytes(2 * 1024**2 * data.NumberOfFrames)
    data.save_as(path)
    del data
    small = N.series(folder / "small", "small")
    with Hospital(folder, run, top='quiet = "1h"', web="largest_mb = 1000") as place:
        receive, web = place.part("receive"), place.part("web")
        config = place.node.config
        assert config.web is not None
        N.call(config, small)
        before = memory(receive)
        _config.STORE_SEND_CHUNKED_DATASET = True
        began = time.monotonic()
        status = _send_path(config, path)
        took = time.monotonic() - began

        def blocks():
            with path.open("rb") as file:
                while block := file.read(2**20):
                    yield block

        url = f"http://127.0.0.1:{config.web.port}/scans"
        N.wait_for(lambda: _answers(url))
        idle = memory(web)
        began = time.monotonic()
        answer = httpx.post(
            url, content=blocks(), headers={"Authorization": f"Bearer {N.TOKEN}"}, timeout=120
        )
        by_http = time.monotonic() - began
        return [
            ("object, MB", round(path.stat().st_size / 1e6)),
            ("by C-STORE: status, seconds", f"0x{status:04X}, {took:.1f}"),
            ("listener: memory after small objects, most ever, MB",
             f"{before:.0f}, {memory(receive):.0f}"),
            ("by HTTP: status, seconds", f"{answer.status_code}, {by_http:.1f}"),
            ("server: memory before, most ever, MB", f"{idle:.0f}, {memory(web):.0f}"),
        ]  # fmt: skip


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(url).status_code > 0
    except httpx.TransportError:
        return False


def _send_path(config: Any, path: Path) -> int:
    import pydicom
    from pynetdicom import AE

    header = pydicom.dcmread(path, stop_before_pixels=True)
    ae = AE("CALLER")
    ae.dimse_timeout = ae.network_timeout = 300
    ae.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    link = ae.associate("127.0.0.1", config.dicom.port, ae_title="NORMSCAN")
    status = int(link.send_c_store(path).Status)
    link.release()
    return status


def hostile(folder: Path, run: Path) -> list[tuple[str, Any]]:
    """Send all that is broken; then ask for something good."""
    import httpx
    from tests.support import hostile as H
    from tests.support import node as N

    bad = list(H.bodies(folder / "bad"))
    lines = {"dicom": "associations = 5\ntimeout = 3", "web": "unpacked_mb = 200"}
    with Hospital(folder, run, **lines) as place:
        config, queue = place.node.config, place.node.store.queue
        assert config.dicom is not None and config.web is not None
        url = f"http://127.0.0.1:{config.web.port}"
        N.wait_for(lambda: _answers(f"{url}/healthz"))
        stored = H.store_raw(config, [body for _, body in bad])
        noise = Counter(
            H.shout(config.dicom.port, d) for _, d in H.protocol(np.random.default_rng(0))
        )
        time.sleep(4)  # those who are silent are let go
        crowded = H.crowd(config, 12)
        wrong = Counter(
            str(N.call(config, N.series(folder / "w", f"w{k}")[:1], **who))
            for k, who in enumerate([{"calling": "STRANGER"}, {"called": "OTHER"}] * 5)
        )
        asked = list(H.requests())
        refused = sum(H.ask(config.web.port, *r[:4])[0] in r[4] for r in asked)
        auth = {"Authorization": f"Bearer {N.TOKEN}"}
        posted = [httpx.post(f"{url}/scans", content=b, headers=auth, timeout=60) for _, b in bad]
        ids = [p.json()["id"] for p in posted if p.status_code == 202]
        for k, header in enumerate(({"BodyPartExamined": "KNEE"}, {"ImageType": ["ORIGINAL", "PRIMARY",
                                    "LOCALIZER"]}, {"Manufacturer": "normscan"})):  # fmt: skip
            N.call(config, N.series(folder / "x", f"x{k}", **header))
        good = N.series(folder / "good", "good")
        alive = N.call(config, good)
        N.wait_for(lambda: set(queue.counts()) <= {"done", "refused", "failed"}, 600)
        ended = Counter(queue.find(key).state for key in set(ids))
        said = httpx.get(f"{url}/metrics", headers=auth).text
        said += "".join(
            json.dumps(httpx.get(f"{url}/scans/{key}", headers=auth).json()) for key in ids
        )
        restarts = {k[1]: v for k, v in queue.tallies().items() if k[0] == "restarted"}
        return [
            ("broken DICOM objects by C-STORE", sum(stored.values())),
            ("their answers", dict(stored)),
            ("broken protocol on the port", dict(noise)),
            ("12 associations where 5 are allowed", dict(crowded)),
            ("wrong AE titles", dict(wrong)),
            ("requests that must be refused, refused", f"{len(asked)}, {refused}"),
            ("broken files uploaded, by status", dict(Counter(p.status_code for p in posted))),
            ("what became of those taken", dict(ended)),
            ("a knee, a localiser, own results: scored", sum(
                job.outcome == "done" for job in queue.jobs("kind = 'series'")) - 1),
            ("a good series afterwards", f"{set(alive)}, "
             f"{len([d for d in place.archive.of('SR') if d.StudyInstanceUID == _study(good[0])])} report"),
            ("processes that died", restarts or "none"),
            ("planted words found in logs, database, file names, answers, metrics",
             place.leaks((b"geheim", b"secret^", b"secret-17"))
             + ("SECRET^" in said) + ("GEHEIM" in said.upper())),
        ]  # fmt: skip


def flow(folder: Path, run: Path, count: int) -> list[tuple[str, Any]]:
    """From the last object of a series to its results in the archive."""
    from tests.support import node as N

    made = [N.series(folder / "out", f"f{k}", seed=k) for k in range(count)]
    with Hospital(folder, run, top="quiet = 0.5") as place:
        N.call(place.node.config, N.series(folder / "first", "first"))
        queue = place.node.store.queue
        N.wait_for(lambda: queue.counts() == {"done": 1})
        began = time.monotonic()
        N.call(place.node.config, [path for files in made for path in files])
        received = time.monotonic() - began
        N.wait_for(lambda: queue.counts() == {"done": count + 1}, 600)
        took = time.monotonic() - began
        waits = [job.ended - job.arrived for job in queue.jobs()][1:]
        alone = []
        for k in range(5):
            N.call(place.node.config, N.series(folder / "alone", f"a{k}", seed=500 + k))
            N.wait_for(lambda k=k: queue.counts() == {"done": count + 2 + k})
            alone.append(queue.jobs()[-1].ended - queue.jobs()[-1].arrived)
        return [
            ("series of 6 objects, one association", count),
            ("objects received a second", round(6 * count / received)),
            ("series a minute, received, scored, sent", round(60 * count / took)),
            ("last object to result, 0.5 s of quiet included: alone, median s",
             f"{np.median(alone):.1f}"),
            ("the same in the crowd, median and most, s", f"{np.median(waits):.1f}, {max(waits):.1f}"),
        ]  # fmt: skip


def drift(streams: int) -> list[tuple[str, Any]]:
    """Simulate scanners that don't change and such that do."""
    from normscan.decide import DriftTest

    alpha, rows = 0.01, []
    changes = {
        "no change": lambda s: s,
        "scores higher by 1 standard deviation": lambda s: s + 1,
        "higher by 0.5": lambda s: s + 0.5,
        "twice the spread": lambda s: 2 * s,
        "higher by 1 after 100 scans": lambda s: s + (np.arange(len(s)) >= 100),
    }
    for name, change in changes.items():
        for healthy in (0, 19, 200):
            rng, when = np.random.default_rng(1), []
            number = streams if name == "no change" else streams // 5
            for _ in range(number):
                tests = DriftTest(rng.normal(size=healthy))
                for k, score in enumerate(change(rng.normal(size=500)), 1):
                    tests.update(float(score), float(rng.random()))
                    if tests.alarm(alpha):
                        when.append(k)
                        break
            text = f"{len(when)} of {number} streams"
            if when:
                text += f", median after {np.median(when):.0f} scans"
            rows.append((f"{name}, {healthy} healthy scans", text))
    return rows


def write(title: str, command: str, rows: list[tuple[str, Any]]) -> None:
    """Put a section into the page, in place of an earlier one."""
    text = OUT.read_text() if OUT.exists() else HEAD
    lines = [f"| {name} | {value} |" for name, value in rows]
    table = "\n".join(["| what | found |", "| --- | --- |", *lines])
    section = f"\n## {title}\n\n`{command}`\n\n{table}\n"
    pattern = rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)"
    if re.search(pattern, text, re.DOTALL):
        text = re.sub(pattern, lambda _: section, text, flags=re.DOTALL)
    else:
        text += section
    OUT.write_text(text)
    print(section)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="flow,kills,uploads,large,hostile,drift")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--large-mb", type=int, default=421)
    parser.add_argument("--streams", type=int, default=500)
    args = parser.parse_args()
    from tests.support import node as N

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "detector").mkdir()
        run = N.make_detector(folder / "detector")
        machine = f"{os.cpu_count()} cores, {platform.system()}"
        parts = {
            "flow": ("Throughput", "", lambda f: flow(f, run, 40)),
            "kills": ("Killed in mid-work", f" --kills {args.kills} --series {args.series}",
                      lambda f: kills(f, run, args.series, args.kills)),
            "uploads": ("Uploads many at a time", f" --uploads {args.uploads}",
                        lambda f: uploads(f, run, args.uploads)),
            "large": ("A large object", f" --large-mb {args.large_mb}",
                      lambda f: large(f, run, args.large_mb)),
            "hostile": ("Hostile objects and requests", "", lambda f: hostile(f, run)),
            "drift": ("False alarms and delays of the drift watch", f" --streams {args.streams}",
                      lambda f: drift(args.streams)),
        }  # fmt: skip
        for name in args.only.split(","):
            title, options, work = parts[name]
            place = folder / name
            place.mkdir()
            rows = work(place)
            write(title, f"python benchmarks/node.py --only {name}{options} ({machine})", rows)


if __name__ == "__main__":
    main()
