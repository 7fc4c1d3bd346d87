"""The detector: preprocessing, method, post-processing and threshold, fitted, saved and loaded as one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscan import registry
from normscan.cohort import Cohort, CohortRow
from normscan.decide import PixelThreshold, ScanThreshold
from normscan.detector import fitting, storage
from normscan.detector.finding import Finding
from normscan.detector.prediction import Predictor, Stitched
from normscan.errors import ArgumentError, CohortError, NormscanError, OutputError, ScanError
from normscan.methods.base import Method
from normscan.preprocess import Prepared
from normscan.preprocess.pipeline import expanded
from normscan.preprocess.samples import Preparation
from normscan.progress import Progress
from normscan.quality import Gate
from normscan.scan import Scan
from normscan.scores.postprocess import apply_chain, parse
from normscan.scores.reductions import check_reduction, reduce_map
from normscan.training.loop import Trainer
from normscan.wrappers import check_wrappers


class Detector:
    """A method with everything around it; use ``create`` and ``load``.

    Args:
        method: id of a registered method.
        preset: ``paper``, ``code``, ``laptop`` or another one of the method's.
        preprocess: changes to the preprocessing, see ``Preprocess``; ``{"preset": "brain-mri"}``
            takes the settings of a preset, and what stands beside it wins.
        postprocess: chain of steps; the method's own by default.
        reduction: from map to score; the method's own by default.
        fpr: false-positive rate of the decision, on healthy validation scans.
        pixel_fpr: mean fraction of pixels of a healthy scan above the pixel threshold.
        patch: side of the patches that training draws and prediction slides over; None for whole
            slices or volumes.
        seed: of everything random.
        cache: keep the results of preprocessing steps on disk; not saved with the detector.
        gate: learn a quality gate, which refuses scans of another kind than the training scans.
        wrappers: what is put around the method, the innermost first, such as ``("ensemble=3",)``;
            see ``normscan.wrappers``; the preset's own by default.
        arguments: of the method.

    Attributes:
        method: the built method after ``fit`` or ``load``.
        scan_threshold: decision on scans after ``fit``.
        pixel_threshold: of the map after ``fit``.
        gate: what a scan is compared with before it is scored, or None.
        training: what it was trained on and how long.

    Raises:
        ArgumentError: unknown method, preset, argument, step or reduction, or a wrong value.
    """

    def __init__(
        self,
        method: str,
        *,
        preset: str = "paper",
        preprocess: dict[str, Any] | None = None,
        postprocess: Iterable[str] | None = None,
        reduction: str | None = None,
        fpr: float = 0.05,
        pixel_fpr: float = 0.05,
        patch: int | None = None,
        seed: int = 0,
        cache: bool = True,
        gate: bool = True,
        wrappers: Iterable[str] | None = None,
        **arguments: Any,
    ) -> None:
        self.card = registry.card(method)
        chosen = self.card.preset(preset)
        self.preset = preset
        self.arguments = self.card.arguments(preset, **arguments)
        settings = {"size": self.arguments["size"]}
        for layer in (self.card.preprocess, chosen.get("preprocess"), preprocess):
            settings |= expanded(layer or {})
        self.preprocess = storage.build_preprocess(settings)
        chain = postprocess if postprocess is not None else chosen.get("postprocess")
        self.postprocess = tuple(self.card.postprocess if chain is None else chain)
        parse(self.postprocess)
        self.reduction = check_reduction(
            reduction or str(chosen.get("reduction", self.card.reduction))
        )
        for name, rate in (("fpr", fpr), ("pixel_fpr", pixel_fpr)):
            if not 0 < rate < 1:
                raise ArgumentError(f"{name} is {rate}; it must lie between 0 and 1.")
        self.fpr, self.pixel_fpr, self.patch, self.seed = fpr, pixel_fpr, patch, seed
        self.cache, self.gated = cache, gate
        wrapped = wrappers if wrappers is not None else chosen.get("wrappers", ())
        self.wrappers = check_wrappers(wrapped)
        if patch is not None:
            if not 1 <= patch <= self.preprocess.size:
                most = f"1..{self.preprocess.size}, the size that scans are brought to"
                raise ArgumentError(f"patch is {patch}; it must lie in {most} (preprocess.size).")
            self.arguments["size"] = patch
        for name, least in (("batch_size", 1), ("steps", 0), ("epochs", 0)):
            count = self.arguments.get(name)
            if isinstance(count, int) and count < least:
                raise ArgumentError(f"{name} is {count}; it must be {least} or more.")
        # As asked for: fitting settles what depends on the cohort, refitting starts from here.
        self._asked = (self.preprocess, dict(self.arguments))
        self.method: Method | None = None
        self.channels: tuple[str, ...] = ()
        self.scan_threshold: ScanThreshold | None = None
        self.pixel_threshold: float | None = None
        self.gate: Gate | None = None
        self.training: dict[str, Any] = {}
        self.fingerprint = ""

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        cohort: Cohort | str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        devices: int = 1,
        precision: str = "32-true",
        workers: int = 1,
        resume: bool = False,
        progress: bool = False,
    ) -> Detector:
        """Learn what healthy looks like, then set the thresholds on healthy validation scans.

        Args:
            cohort: a cohort, or the path of its table or folder.
            out: run folder for log, checkpoint and the finished detector; None keeps everything in
                memory and a temporary folder.
            device: ``auto``, ``cpu``, ``cuda`` or another accelerator of Lightning Fabric.
            devices: number of processes.
            precision: of Lightning Fabric, such as ``32-true`` or ``bf16-mixed``.
            workers: processes that prepare scans; the result is the same for any number.
            resume: go on from the checkpoint in ``out``.
            progress: show progress on stderr.

        Returns:
            Itself.

        Raises:
            CohortError: no healthy scans to train on or to set the threshold with.
            OutputError: ``out`` exists and ``resume`` is False, or it holds another configuration.
            ArgumentError: a value that the method can't be built with, or no such device.
        """
        if out is None and devices > 1:
            raise ArgumentError("several processes need a run folder to share: give out.")
        cohort = cohort if isinstance(cohort, Cohort) else Cohort.read(cohort, seed=self.seed)
        fitting.check_cohort(cohort)
        self.preprocess, self.arguments = self._asked[0], dict(self._asked[1])
        with (
            tempfile.TemporaryDirectory(prefix="normscan-") as temporary,
            Progress(progress) as bar,
        ):
            folder = Path(temporary)
            if out is not None:
                folder = Path(out)
                asked = {**self.configuration(), "cohort": cohort.digest(), "precision": precision}
                storage.claim_folder(folder, asked, resume)
            if out is not None and resume and (folder / storage.DETECTOR).exists():
                self.__dict__.update(load(folder).__dict__)
                return self
            with storage.tidied(folder):
                self._fit(cohort, folder, (device, devices, precision), workers, bar)
                # Of several processes only the first calibrated, and it alone writes.
                if out is not None and self.scan_threshold is not None:
                    storage.write_detector(self, folder)
        return self

    def _fit(
        self,
        cohort: Cohort,
        folder: Path,
        machine: tuple[str, int, str],
        workers: int,
        bar: Progress,
    ) -> None:
        fabric = storage.launch_fabric(*machine)
        begun = time.monotonic()
        self.scan_threshold = self.gate = None
        problem: NormscanError | None = None
        prepared = folder / "cache"
        if fabric.is_global_zero:
            try:
                sets = fitting.prepare(self, cohort, prepared, workers, bar)
            except NormscanError as error:
                problem = error
        if fabric.broadcast(problem is not None):
            raise problem or SystemExit(1)  # the first process says what is wrong, the others end
        if not fabric.is_global_zero:
            sets = fitting.join(self, prepared)
        assert self.method is not None
        named = {"healthy": "training", "val": "validation"}
        numbers = ", ".join(f"{len(s)} {named.get(name, name)}" for name, s in sets.items())
        bar.say(f"{self.card.id}: {numbers} samples")
        if need := self.method.need(len(sets["healthy"])):
            bar.say(f"{self.card.id}: {need}")
        trainer = Trainer(self.method, sets, sets["val"], folder, fabric, self.seed, bar.update)
        fitting.finish(self, cohort, sets, trainer.run(), fabric.device)
        if fabric.is_global_zero:
            self.calibrate(cohort.part("val"), bar)
        self.training["seconds"]["total"] = round(time.monotonic() - begun, 3)

    def calibrate(self, healthy: Cohort, bar: Progress | None = None) -> None:
        """Set the scan and the pixel threshold on healthy scans that did not train."""
        pixels = PixelThreshold(self.pixel_fpr)
        scores, subjects = [], []
        bar = bar or Progress(False)
        rows = bar.track(healthy, "calibrate", len(healthy))
        for row, result in self.predict_cohort(rows, force=True):
            if isinstance(result, Finding):
                scores.append(result.score)
                subjects.append(row.subject)
                if result.map is not None:
                    pixels.add(result.map)
        if not scores:
            raise CohortError("no healthy validation scan could be predicted: no threshold.")
        self.scan_threshold = ScanThreshold.fit(scores, self.fpr, subjects)
        self.pixel_threshold = pixels.threshold if len(pixels) else None
        self.training["calibration"] = self.scan_threshold.describe()
        if len(pixels):
            self.training["pixel_threshold"] = pixels.to_dict()

    # --------------------------------------------------------------- prediction

    def preparation(self) -> Preparation:
        """What prepares its scans, in any process."""
        return Preparation(self.preprocess, self.arguments["dims"], self.channels, self.cache)

    def predict(
        self,
        scan: Scan | np.ndarray | str | os.PathLike[str] | list[str],
        foreground: np.ndarray | None = None,
        details: bool = True,
        force: bool = False,
        columns: Mapping[str, Any] | None = None,
    ) -> Finding:
        """Score a scan and map where it departs from healthy.

        Args:
            scan: a scan, the path of a file, one path per channel, or an array (H, W) or
                (X, Y, Z) with a spacing of 1 mm.
            foreground: (*scan.shape) bool; computed if not given.
            details: also bring the restoration back to the scan's grid.
            force: score it whatever the quality gate says.
            columns: what the cohort says of it (age, sex, ...), for methods that use it.

        Raises:
            ScanError: the scan can't be read, doesn't fit the detector, or the quality gate refuses
                it as damaged or of another kind than the training scans.
            ArgumentError: the detector was not fitted.
        """
        if self.method is None:
            raise ArgumentError("this detector was not fitted; call fit(cohort) or load(folder).")
        if isinstance(scan, np.ndarray):
            scan = storage.check_array(scan)
        elif not isinstance(scan, Scan):
            scan = Scan.read(scan)
        begun = time.monotonic()
        verdict = None if self.gate is None else self.gate.check(scan)
        if verdict is not None and not (verdict.passed or force):
            raise ScanError(
                f"{scan.name}: refused by the quality gate: {' '.join(verdict.reasons)} "
                "Use force (--force) to score it all the same."
            )
        preparation = self.preparation()
        prepared = preparation.of(scan, foreground)
        size = 16 if self.arguments["dims"] == 2 else 1
        slices = preparation.slices(prepared)
        predictor = Predictor(self.method, slices, self.patch, size, self.seed)
        stitched = predictor(prepared, columns)
        finding = Finding(scan, None, self._score(stitched, prepared), quality=verdict)
        if stitched.map is not None:
            finding.map = prepared.back(stitched.map[None])[0]
        if details:
            self._add_details(finding, stitched, prepared)
        if self.scan_threshold is not None:
            finding.threshold = self.scan_threshold.threshold
            finding.p_value = self.scan_threshold.p_value(finding.score)
            finding.anomalous = self.scan_threshold.is_anomalous(finding.score)
        finding.pixel_threshold = self.pixel_threshold
        # The article counts voxels of its own grid; here they become those of the scan's.
        finding.smallest_component = round(self.card.smallest_component * prepared.voxel)
        if prepared.working is not None:
            finding.notes, finding.facts = prepared.working.notes, prepared.working.facts
        finding.provenance = storage.provenance(self)
        finding.seconds = time.monotonic() - begun
        return finding

    def _score(self, stitched: Stitched, prepared: Prepared) -> float:
        """Post-process the map in place; the method's own score goes before a reduction of it."""
        if stitched.map is not None:
            stitched.map = apply_chain(
                self.postprocess, stitched.map, prepared.foreground, prepared.image
            )
            if not np.isfinite(stitched.map).all():
                raise ScanError("the method's map is not finite for this scan; was it trained?")
        if stitched.scores:
            return float(max(stitched.scores))
        assert stitched.map is not None
        return reduce_map(self.reduction, stitched.map, prepared.foreground)

    @staticmethod
    def _add_details(finding: Finding, stitched: Stitched, prepared: Prepared) -> None:
        back = prepared.back
        finding.foreground = back(prepared.foreground[None].astype(np.float32))[0] > 0.5
        if stitched.reconstruction is not None:
            finding.reconstruction = back(stitched.reconstruction)
            finding.prepared = back(prepared.image)

    def predict_cohort(
        self, rows: Iterable[CohortRow], details: bool = False, force: bool = False
    ) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
        """Predict scan after scan; a bad scan yields its error and the rest goes on."""
        for row in rows:
            try:
                scan = row.load()
                foreground = row.load_foreground(scan)
                yield row, self.predict(scan, foreground, details, force, row.columns)
            except NormscanError as error:
                yield row, error
            except OSError as error:
                yield row, ScanError(f"{row.scan}: can't be read ({error.strerror}).")

    # ------------------------------------------------------------------ storage

    def configuration(self) -> dict[str, Any]:
        """What was asked for, as plain values; a run folder belongs to one configuration."""
        return storage.plain(
            {
                "method": self.card.id,
                "preset": self.preset,
                "arguments": self.arguments,
                "preprocess": self.preprocess.to_dict(),
                "postprocess": self.postprocess,
                "reduction": self.reduction,
                "fpr": self.fpr,
                "pixel_fpr": self.pixel_fpr,
                "patch": self.patch,
                "wrappers": self.wrappers,
                "seed": self.seed,
            }
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the detector to a new folder: weights, ``detector.json`` and ``card.md``.

        Raises:
            OutputError: the folder exists and isn't empty, or the detector was not fitted.
        """
        folder = Path(folder)
        if self.method is None:
            raise OutputError("this detector was not fitted, so there is nothing to save.")
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder} exists. Choose another folder or remove it.")
        storage.write_detector(self, folder)
        return folder


def create(method: str, **options: Any) -> Detector:
    """Return an unfitted detector; see ``Detector`` for the options.

    Example:
        >>> import normscan as ns
        >>> ns.create("dae", preset="laptop", noise_std=0.3)  # doctest: +ELLIPSIS
        <normscan.detector.Detector object at ...>
    """
    return Detector(method, **options)


def load(folder: str | os.PathLike[str], device: str = "auto") -> Detector:
    """Load a detector from the folder that ``fit`` or ``save`` wrote.

    Args:
        folder: with ``detector.json`` and ``model.safetensors``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        OutputError: no detector there, an unfinished or a damaged one.
    """
    folder = Path(folder)
    state = storage.read_detector(folder)
    try:
        setup = state["configuration"]
        detector = Detector(
            setup["method"],
            preset=setup["preset"],
            **{
                k: setup[k]
                for k in ("postprocess", "reduction", "fpr", "pixel_fpr", "patch", "seed")
            },
            wrappers=setup.get("wrappers", ()),
        )
        detector.arguments = {k: storage.tupled(v) for k, v in setup["arguments"].items()}
        detector.preprocess = storage.build_preprocess(setup["preprocess"])
        detector._asked = (detector.preprocess, dict(detector.arguments))
        detector.channels = tuple(state["channels"])
        detector.scan_threshold = ScanThreshold.from_dict(state["scan_threshold"])
        pixel = state["pixel_threshold"]
        detector.pixel_threshold = None if pixel is None else float(pixel)
        detector.training = state["training"]
        gate = state.get("gate")
        detector.gate = None if gate is None else Gate.from_dict(gate)
        detector.fingerprint = state["sha256"]
        detector.method = storage.read_method(detector, folder)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ArgumentError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise OutputError(
            f"{folder / storage.DETECTOR} is damaged ({reason}). Train again."
        ) from error
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        detector.method.to(chosen if device == "auto" else device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"device '{device}' can't be used here: {reason}") from error
    return detector
