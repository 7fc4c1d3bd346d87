"""PatchCore's time and memory beside anomalib's: python benchmarks/patchcore_speed.py.

Writes benchmarks/results/patchcore_speed.json and .md. Both have the same ResNet-18, the same
prepared images of the magnetic tiles at 224 pixels, banks of the same size, one thread, and each
part runs in a process of its own; CPU time is compared, so that other work on the machine matters
little. The peers are in benchmarks/requirements-peers.txt; a missing one is reported as such.
``--stream`` only measures the memory of a fit on 10,000 images, ``--disk`` only a bank of all
patches of 3,000 images, larger than the memory allowed; both are added to the results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
WEIGHTS = SHARED / "weights" / "resnet18_imagenet1k_v1_bnfolded_conv1_to_layer3.pth"
RESULTS = HERE / "results" / "patchcore_speed.json"
LIBRARIES = ("normscan", "normscan float32", "anomalib")
BANKS = (1_000, 4_000, 16_000, 64_000)
SIZE, BATCH, SHARE = 224, 16, 0.1
CHOSEN_FROM = 40  # images whose patches both choose a coreset from
STREAMED, STREAMED_BANK = 10_000, 10_000
ON_DISK, ON_DISK_MEMORY = 3_000, 1.0  # images, and GiB


def images(data: Path, cache: Path) -> dict[str, Any]:
    """Prepared images (N, 1, 224, 224) of train and test, and the labels of test."""
    from normscan import Cohort, Detector

    file = cache / f"{data.name}-{SIZE}.npz"
    if not file.exists():
        # Each scan on its own, so that nothing needs to be learnt first.
        scaled = {"scaling": "percentile", "crop": "foreground", "fit": "pad"}
        cohort = Cohort.read(data)
        detector = Detector("patchcore", size=SIZE, preprocess=scaled, calibration="split")
        parts = {}
        for part in ("train", "test"):
            rows = list(cohort.part(part))
            scans = [detector.preprocess(row.load(), 2).image for row in rows]
            parts[part] = np.stack(scans)[:, :1]
            parts[f"{part}_labels"] = np.array([row.label for row in rows])
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, **parts)
    return dict(np.load(file))


def coreset(vectors: Tensor) -> Tensor:
    """A tenth of the vectors, by normscan."""
    from normscan.rng import Rng
    from normscan.scores.coreset import k_center_greedy

    return vectors[k_center_greedy(vectors, round(SHARE * len(vectors)), Rng(0))]


class Ours:
    """normscan's method."""

    def __init__(self, search: str = "auto", **arguments: Any) -> None:
        from normscan.registry import card

        asked = {"backbone": "resnet18.tv_in1k", "weights": str(WEIGHTS), "size": SIZE}
        asked["pooling"] = "average"  # as anomalib does
        build = card("patchcore").build
        self.method: Any = build(dims=2, channels=1, search=search, **{**asked, **arguments})
        self.method.eval()

    def batch(self, x: Tensor) -> Any:
        from normscan.methods.base import Batch
        from normscan.rng import Rng

        return Batch(x, torch.ones_like(x, dtype=torch.bool), Rng(0), torch.zeros(len(x)))

    def embed(self, x: Tensor) -> Tensor:
        return self.method.patches(x)[0].flatten(0, 1)

    def choose(self, vectors: Tensor) -> Tensor:
        return coreset(vectors)

    def keep(self, bank: Tensor) -> None:
        self.method.bank.keep(bank)

    def search(self, vectors: Tensor) -> Tensor:
        return self.method.bank.nearest(vectors)[:, 0].sqrt()

    def predict(self, x: Tensor) -> Tensor:
        return self.method.maps(self.batch(x)).score


class Theirs:
    """anomalib's model with the same weights."""

    def __init__(self) -> None:
        from normscan.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, import_timm

        import_timm()  # declares the operators that torchvision lacks beside some builds of torch
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        self.model = PatchcoreModel(["layer2", "layer3"], "resnet18", pre_trained=False)
        state = torch.load(WEIGHTS, weights_only=True)
        found = self.model.feature_extractor.feature_extractor.load_state_dict(state, strict=False)
        assert not [k for k in found.missing_keys if not k.startswith(("layer4", "fc"))], found
        self.model.eval()
        self.mean, self.std = (
            torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def embed(self, x: Tensor) -> Tensor:
        self.model.train()
        self.model.feature_extractor.eval()
        vectors = self.model((x - self.mean) / self.std)
        self.model.embedding_store.clear()
        self.model.eval()
        return vectors

    def choose(self, vectors: Tensor) -> Tensor:
        from anomalib.models.components import KCenterGreedy

        torch.manual_seed(0)
        return KCenterGreedy(vectors, SHARE).sample_coreset()

    def keep(self, bank: Tensor) -> None:
        self.model.memory_bank = bank

    def search(self, vectors: Tensor) -> Tensor:
        return self.model.nearest_neighbors(vectors, 1)[0]

    def predict(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std).pred_score


def library(name: str) -> Ours | Theirs:
    return Theirs() if name == "anomalib" else Ours(name.partition(" ")[2] or "auto")


def peak() -> float:
    """Largest memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Stage:
    """CPU seconds of a block and the memory, MiB, that its process grew by inside it at most."""

    def __enter__(self) -> Stage:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self.before, self.clock = status("VmRSS"), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.clock
        self.memory = status("VmHWM") - self.before


def status(name: str) -> float:
    """A line of this process's status, MiB; RssAnon lies in no file, the rest can be dropped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return float("nan")


def radius(vectors: Tensor, bank: Tensor) -> float:
    """The largest distance of a vector to its nearest in the bank."""
    from normscan.scores.neighbours import Neighbours

    return float(Neighbours(bank, "float32")(vectors).max().sqrt())


@torch.inference_mode()
def whole(name: str, data: Path, cache: Path) -> dict[str, Any]:
    """Fit and predict with one library."""
    from sklearn.metrics import roc_auc_score

    parts = images(data, cache)
    train, test = (torch.from_numpy(parts[part]) for part in ("train", "test"))
    model = library(name)
    model.embed(train[:1])
    found: dict[str, Any] = {"before": status("VmRSS"), "train": len(train), "test": len(test)}
    with Stage() as stage:
        vectors = torch.cat([model.embed(x) for x in train.split(BATCH)])
    found["embed"] = stage.seconds / len(train)
    few = vectors[: CHOSEN_FROM * len(vectors) // len(train)]
    with Stage() as stage:
        chosen = model.choose(few)
    found |= {"choose": stage.seconds, "choose_memory": stage.memory}
    found |= {"few": len(few), "chosen": len(chosen), "radius": radius(few, chosen)}
    # The peer's own choice among all patches would take a quarter of an hour.
    bank = coreset(vectors)
    found |= {"patches": len(vectors), "bank": len(bank)}
    del vectors, few, chosen
    model.keep(bank)
    # The first prediction makes what the search stores: that is part of its memory.
    with Stage() as first:
        model.predict(test[:1])
    with Stage() as stage:
        scores = torch.cat([model.predict(x) for x in test.split(BATCH)])
    found["predict"] = stage.seconds / len(test)
    found["predict_memory"] = max(first.memory, stage.before + stage.memory - first.before)
    found["auroc"] = float(roc_auc_score(parts["test_labels"] == 1, scores))
    found["peak"] = peak()
    return found


@torch.inference_mode()
def sweep(data: Path, cache: Path) -> dict[str, Any]:
    """CPU seconds of the search for one image's patches, over the bank's size, same vectors."""
    parts = images(data, cache)
    ours = Ours()
    train = torch.from_numpy(parts["train"])
    vectors = torch.cat([ours.embed(x) for x in train.split(BATCH)])
    vectors = vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0))]
    test = ours.embed(torch.from_numpy(parts["test"][:4]))
    models: dict[str, Any] = {name: library(name) for name in available()}
    if importlib.util.find_spec("faiss"):
        models["normscan faiss"] = library("normscan faiss")
    found: dict[str, Any] = {}
    for size in BANKS:
        bank = vectors[:size].clone()
        times: dict[str, float] = {}
        distances: dict[str, Tensor] = {}
        for name, model in models.items():
            model.keep(bank)
            model.search(test[:100])
            clock = time.process_time()
            distances[name] = model.search(test)
            times[name] = (time.process_time() - clock) / 4
        exact = distances["normscan float32"]
        if importlib.util.find_spec("faiss"):
            times["FAISS IndexFlatL2"] = faiss_flat(bank, test)
        missed = {
            name: float((distances[name] > exact * 1.001 + 1e-3).float().mean())
            for name in ("normscan", "normscan faiss")
            if name in distances
        }
        found[str(size)] = {"seconds": times, "missed": missed}
    return found


def faiss_flat(bank: Tensor, queries: Tensor) -> float:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(bank.shape[1])
    index.add(bank.numpy())
    index.search(queries[:100].numpy(), 1)
    clock = time.process_time()
    index.search(queries.numpy(), 1)
    return (time.process_time() - clock) / 4


def streamed(data: Path, cache: Path) -> dict[str, Any]:
    """Peak memory of a fit on 10,000 images: real ones, turned, mirrored and shifted."""
    parts = images(data, cache)
    source = torch.from_numpy(parts["train"])
    # 1024 numbers for a patch, as by default: the memory is that of the article's vectors.
    model = Ours(dim=1024, pooling="windows", largest=STREAMED_BANK)
    need = model.method.need(STREAMED)
    print(need, flush=True)
    before, used = peak(), time.process_time()
    model.method.fit(varied(model, source, STREAMED))
    return {
        "images": STREAMED, "need": need, "before": before, "peak": peak(),
        "bank": len(model.method.bank.vectors), "cpu": time.process_time() - used,
    }  # fmt: skip


def varied(model: Ours, source: Tensor, n: int) -> Iterator[Any]:
    """Batches of so many images: real ones, turned, mirrored and shifted."""
    draw, clock = np.random.default_rng(0), time.time()
    for start in range(0, n, BATCH):
        rows = draw.integers(len(source), size=min(BATCH, n - start))
        shift = tuple(int(v) for v in draw.integers(-24, 25, 2))
        x = source[rows].roll(shift, (2, 3)).rot90(int(draw.integers(4)), (2, 3))
        yield model.batch(x if draw.random() < 0.5 else x.flip(3))
        if start % 1600 == 0:
            print(start, f"{peak():.0f} MiB", f"{time.time() - clock:.0f} s", flush=True)


@torch.inference_mode()
def disk(data: Path, cache: Path) -> dict[str, Any]:
    """A bank of all patches that is larger than the memory allowed, and its search."""
    parts = images(data, cache)
    model = Ours(coreset=1.0, largest=10**9, memory=ON_DISK_MEMORY)
    need = model.method.need(ON_DISK)
    print(need, flush=True)
    test = model.embed(torch.from_numpy(parts["test"][:4]))
    before, used, held = status("RssAnon"), time.process_time(), 0.0

    def watched() -> Iterator[Any]:
        nonlocal held
        for batch in varied(model, torch.from_numpy(parts["train"]), ON_DISK):
            held = max(held, status("RssAnon"))
            yield batch

    model.method.fit(watched())
    bank = model.method.bank
    found: dict[str, Any] = {"images": ON_DISK, "need": need, "cpu": time.process_time() - used}
    found |= {"bank": len(bank.vectors), "size": bank.vectors.nbytes / 2**30}
    found |= {"before": before, "collecting": held, "after": status("RssAnon")}
    bank.nearest(test[:100])
    clock = time.process_time()
    near = bank.nearest(test)[:, 0]
    found["faiss"] = (time.process_time() - clock) / 4
    bank.lists = type(bank.lists)(bank.vectors.shape[1])  # none: all are compared
    bank.search = "float32"
    bank._forget()
    bank.nearest(test[:100])
    clock = time.process_time()
    exact = bank.nearest(test)[:, 0]
    found["exact"] = (time.process_time() - clock) / 4
    found["missed"] = float((near > exact * 1.001 + 1e-3).float().mean())
    return found


def available() -> list[str]:
    return [n for n in LIBRARIES if n != "anomalib" or importlib.util.find_spec("anomalib")]


def in_own_process(part: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part, "--data", str(options.data)]
    command += ["--cache", str(options.cache)]
    # Without the fixed threshold glibc's heap grows by 32 MB with each step of anomalib's choice.
    quiet = {**os.environ, "TQDM_DISABLE": "1", "MALLOC_MMAP_THRESHOLD_": str(2**22)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(part, found, flush=True)
    return found


def page(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    first = results["whole"]["normscan"]
    lines = [
        "# PatchCore's time and memory",
        "",
        f"`{results['command']}` ({versions}). {first['train']} training and {first['test']} test "
        f"images of {SIZE} pixels, {first['patches']:,} patches of 384 numbers, a bank of "
        f"{first['bank']:,}. CPU time of one thread. The memory of a stage is what its process grew "
        "by inside it, that of the process includes the libraries and all patches. The "
        f"coreset is a tenth of the {first['few']:,} patches of {CHOSEN_FROM} images; the banks "
        "for the prediction were both chosen by normscan, each among its own vectors. Large "
        "allocations are returned at once (MALLOC_MMAP_THRESHOLD_), in all processes: else "
        "anomalib's choice fragments the heap until the machine has no memory left.",
        "",
        "| | features, s/image | coreset, s | its memory, MiB | covering radius "
        "| prediction, s/image | its memory, MiB | process, MiB | image AUROC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in results["whole"].items():
        lines.append(
            f"| {name} | {f['embed']:.3f} | {f['choose']:.2f} | {f['choose_memory']:.0f} "
            f"| {f['radius']:.3f} | {f['predict']:.3f} | {f['predict_memory']:.0f} "
            f"| {f['peak']:.0f} | {f['auroc']:.4f} |"
        )
    if "anomalib" in results["whole"]:
        peer = results["whole"]["anomalib"]
        ratios = [peer[k] / first[k] for k in ("choose", "predict")]
        lines += [
            "",
            f"anomalib takes {ratios[0]:.1f} times as long for the coreset and {ratios[1]:.2f} "
            'times as long for a prediction. The vectors are the same (`pooling="average"`); the '
            "two start their choice at different patches and project at random.",
        ]
    one = next(iter(results["sweep"].values()))
    names, searched = list(one["seconds"]), list(one["missed"])
    lines += [
        "",
        "## Search over the size of the bank",
        "",
        "CPU seconds for the 784 patches of an image, the same vectors for all. The last columns are "
        "the share of patches for which coarse products (`normscan`) or FAISS's inverted lists "
        "(`normscan faiss`) proposed another neighbour than the nearest.",
        "",
        "| bank | " + " | ".join([*names, *(f"missed, {n}" for n in searched)]) + " |",
        "|---|" + "---|" * (len(names) + len(searched)),
    ]
    for size, f in results["sweep"].items():
        times = " | ".join(f"{f['seconds'][n]:.4f}" for n in names)
        missed = " | ".join(f"{f['missed'][n]:.4f}" for n in searched)
        lines.append(f"| {int(size):,} | {times} | {missed} |")
    if s := results.get("stream"):
        lines += [
            "",
            f"## {s['images']:,} training images",
            "",
            f'The detector says before it fits: "{s["need"]}". The process that fitted them had '
            f"{s['peak'] / 1024:.2f} GiB at most, {s['before'] / 1024:.2f} GiB before; bank "
            f"{s['bank']:,} (`largest`); {s['cpu'] / 60:.0f} minutes of one core, the backbone a "
            "ResNet-18.",
        ]
    if d := results.get("disk"):
        lines += [
            "",
            "## All patches, on disk",
            "",
            f'{d["images"]:,} images, `coreset=1`, `memory={ON_DISK_MEMORY:g}`: "{d["need"]}". '
            f"Memory that lies in no file: {d['before']:.0f} MiB before, at most "
            f"{d['collecting']:.0f} while the patches came, {d['after']:.0f} with the lists built. "
            f"The patches of an image take {d['faiss']:.3f} s of CPU time with FAISS, "
            f"{d['exact']:.2f} s when all vectors are compared; {d['missed']:.2%} have another "
            "neighbour than the nearest.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "magnetic_tile_defects")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "patchcore_speed")
    parser.add_argument("--stream", action="store_true", help="only the fit on 10,000 images")
    parser.add_argument("--disk", action="store_true", help="only the bank on disk")
    parser.add_argument("--part", help="for the script itself")
    options = parser.parse_args()
    if options.part:
        named = {"sweep": sweep, "stream": streamed, "disk": disk}
        act = named.get(options.part, lambda *a: whole(options.part, *a))
        print(json.dumps(act(options.data, options.cache)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    images(options.data, options.cache)
    if options.stream or options.disk:
        part = "stream" if options.stream else "disk"
        results[part] = in_own_process(part, options)
    else:
        results["command"] = "python benchmarks/patchcore_speed.py"
        names = ("torch", "anomalib", "faiss-cpu")
        results["versions"] = {n: version(n) for n in names}
        results["whole"] = {name: in_own_process(name, options) for name in available()}
        results["sweep"] = in_own_process("sweep", options)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if "whole" in results:
        RESULTS.with_suffix(".md").write_text(page(results))


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
