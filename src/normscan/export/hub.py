"""A detector as a repository of a Hugging Face hub, and back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscan.detector import Detector, load
from normscan.detector.elsewhere import check_new
from normscan.detector.signed import SIGNATURE, check_files, check_trusted
from normscan.detector.storage import FILES, bounds, read_state, write_state
from normscan.detector.unnamed import names_left
from normscan.errors import OutputError
from normscan.identity import names_are_kept
from normscan.io.hub import Place, fetch, send
from normscan.io.values import read_json
from normscan.report.summary import known, number
from normscan.training.folder import DETECTOR, DIVISION
from normscan.version import __version__

README = "README.md"  # what a hub shows, and reads in its first lines
RESULTS = Path("evaluation") / "results.json"
PRIVATE = "a private cohort"
# What the hub calls our figures, where it has a name.
METRICS = {"image_auroc": "roc_auc", "image_ap": "average_precision", "dice": "dice"}


@dataclass(frozen=True)
class About:
    """What a run folder doesn't know of itself.

    Attributes:
        licence: of the weights, as the hub calls it, such as cc-by-4.0; None where the training data
            decide.
        dataset: name of the cohort that the figures are of.
        gate: whether the quality gate travels, which holds coarse thumbnails of training scans.
    """

    licence: str | None = None
    dataset: str = PRIVATE
    gate: bool = True


def push(
    run: str | os.PathLike[str], repo: str, about: About, public: bool = False
) -> tuple[str, list[str]]:
    """Put a detector into a repository of a hub, in one commit.

    Names of scans stay behind, and with them the list of the scans that it learnt from, unless
    ``normscan.identity.keeping_names``.

    Args:
        run: run folder.
        repo: ``owner/name`` or ``owner/name@branch``; made where it isn't there.
        about: what the run folder doesn't know.
        public: whether everybody sees a repository that is made.

    Returns:
        Address of the commit, and the names of the files.

    Raises:
        OutputError: no detector there, no right, no network.
    """
    place = Place.of(repo)
    detector = load(run, "cpu")
    with staged(detector, Path(run), place, about) as folder:
        names = sorted(path.name for path in folder.iterdir())
        message = f"{detector.card.id} detector by normscan {__version__}"
        return send(place, folder, names, [*FILES, README], public, message), names


@contextmanager
def staged(detector: Detector, run: Path, place: Place, about: About) -> Iterator[Path]:
    """Give a temporary folder with the files that travel."""
    if detector.graph is not None:
        raise OutputError("this detector is an exported graph: push its run folder.")
    with tempfile.TemporaryDirectory(prefix="normscan-") as temporary:
        folder = Path(temporary)
        write_state(detector if about.gate else detector.changed(gate=None), folder)
        if not names_are_kept():
            (folder / DIVISION).unlink(missing_ok=True)
            if names_left(read_json(folder / DETECTOR)):
                raise OutputError(
                    f"{run}: was fitted with --keep-names, and {DIVISION}, which tells names from the rest, "
                    "is missing. Bring it back, or push with --keep-names."
                )
        _take_signature(run, folder)
        card = (folder / "card.md").read_text(encoding="utf-8")
        text = model_card(detector, card, results_of(detector, run), place, about)
        (folder / README).write_text(text, encoding="utf-8")
        yield folder


def _take_signature(run: Path, folder: Path) -> None:
    """Let the signature travel where what it signed is what travels."""
    if not all((run / name).is_file() for name in SIGNATURE):
        return
    for name in SIGNATURE:
        shutil.copyfile(run / name, folder / name)
    try:
        check_files(folder)
    except OutputError:  # without names or the gate it is another detector
        for name in SIGNATURE:
            (folder / name).unlink()


def pull(repo: str, out: str | os.PathLike[str], most: int) -> Path:
    """Fetch a detector into a new folder, which is whole and checked, or not there.

    Args:
        repo: ``owner/name``, or ``owner/name@revision`` with a branch, tag or commit.
        out: new folder.
        most: bytes that its weights may have.

    Raises:
        OutputError: ``out`` exists; no such repository, no network; a file of another kind or too
            large; no detector there, one that is damaged, or none that is trusted.
    """
    out = Path(out)
    check_new(out)
    fetched = fetch(Place.of(repo), bounds(most))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / "run"
        folder.mkdir()
        for name in FILES:
            if (fetched / name).is_file():
                shutil.copyfile(fetched / name, folder / name)
        check_trusted(folder)
        read_state(folder, "cpu")
        os.replace(folder, out)
    return out


def results_of(detector: Detector, run: Path) -> dict[str, Any]:
    """Return the metrics of the evaluation in the run folder; none where it is of another detector."""
    try:
        found = read_json(run / RESULTS)
        same = found["tested"]["detector_sha256"] == detector.fingerprint
        metrics = found["metrics"] if same else {}
        return {k: e for k, e in metrics.items() if known(e["value"]) and not e["oracle"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def model_card(
    detector: Detector, card: str, metrics: dict[str, Any], place: Place, about: About
) -> str:
    """Return the page of the repository: what hubs read in front, the detector's card, its figures.

    Args:
        detector: that travels.
        card: its ``card.md``.
        metrics: of its evaluation, by name; chosen with the test labels are none of them.
        place: that it goes to.
        about: licence and the name of the cohort.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = "image-segmentation" if "pixel_ap" in metrics else "image-classification"
    if detector.pixel_threshold is not None:
        task = "image-segmentation"
    figures = [
        EvalResult(
            task_type=task, dataset_type="medical-images", dataset_name=about.dataset,
            metric_type=METRICS.get(name, name), metric_name=entry["title"],
            metric_value=round(float(entry["value"]), 4),
        )
        for name, entry in metrics.items()
    ]  # fmt: skip
    front = ModelCardData(
        license=about.licence or "other",
        license_name=None if about.licence else "as-the-training-data-allow",
        library_name="normscan",
        pipeline_tag=task,
        tags=["normscan", "anomaly-detection", "medical-imaging", detector.card.id,
              detector.card.regime],
        metrics=sorted({METRICS.get(name, name) for name in metrics}) or None,
        model_name=place.repo.partition("/")[2],
        eval_results=figures or None,
    )  # fmt: skip
    lines = ["---", front.to_yaml().strip(), "---", card.strip(), "", "## Use", "", "```"]
    lines += [
        f"normscan pull {place} --out detector",
        "normscan predict detector scan.nii.gz",
        "```",
        "",
    ]
    lines += [f'`normscan.load("hf:{place}")` is the same in Python. Weights are safetensors.']
    if metrics:
        lines += ["", f"## Figures on {about.dataset}", ""]
        lines += ["| figure | value | 95 % interval |", "|---|---|---|"]
        for entry in metrics.values():
            ends = [number(entry.get(k)) for k in ("low", "high")]
            lines.append(f"| {entry['title']} | {number(entry['value'])} | {' to '.join(ends)} |")
        lines += ["", "Intervals are by subject. No figure was chosen with the test labels."]
    return "\n".join(lines) + "\n"
