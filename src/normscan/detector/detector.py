"""The detector: preprocessing, method, post-processing and threshold, fitted, saved and loaded as one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normscan import notebook
from normscan.cohort import Cohort, CohortRow
from normscan.cohort.memory import as_cohort
from normscan.decide import Calibration
from normscan.decide.calibration import Kind
from normscan.detector.described import read_exported
from normscan.detector.exclude import Excluded, reasons_of
from normscan.detector.filled import without as lacking
from normscan.detector.finding import Finding
from normscan.detector.prediction import Companions, predict, predict_rows
from normscan.detector.signed import check_trusted
from normscan.detector.state import State, ask
from normscan.errors import ArgumentError, NormscanError, OutputError
from normscan.progress import Progress
from normscan.scan import Scan

if TYPE_CHECKING:
    import pandas as pd


class Detector(State):
    """A method with everything around it; use ``create`` and ``load``.

    Args:
        method: id of a registered method.
        preset: ``paper``, ``code``, ``laptop`` or another one of the method's.
        preprocess: changes to the preprocessing, see ``Preprocess``; ``{"preset": "brain-mri"}``
            takes the settings of a preset, and what stands beside it wins.
        postprocess: chain of steps; the method's own by default.
        reduction: from map to score, in place of the method's own; ``evidence`` lets planted lesions
            in healthy scans choose, see ``normscan.detector.evidence``.
        fpr: false-positive rate of the decision, on healthy validation scans.
        pixel_fpr: mean fraction of pixels of a healthy scan above the pixel threshold.
        false_components: mean number of components of a healthy scan above the pixel threshold, at
            most, beside ``pixel_fpr``; None to bound the share of pixels alone.
        patch: side of the patches that training draws and prediction slides over; None for whole
            slices or volumes.
        seed: of everything random.
        cache: keep the results of preprocessing steps on disk; not saved with the detector.
        gate: learn a quality gate, which refuses scans of another kind than the training scans.
        wrappers: what is put around the method, the innermost first, such as ``("ensemble=3",)``;
            see ``normscan.wrappers``; the preset's own by default.
        calibration: healthy scans that set the threshold: ``split`` takes those of val, ``cross``
            all of train and val, each scored by a detector that didn't see its subject; ``auto``
            a split where val has enough subjects for ``fpr`` (39 for 5 %), else ``cross``.
        folds: detectors that ``cross`` fits, each without one part of the healthy subjects.
        refit: with ``cross``, keep one detector fitted to all healthy scans, rather than the folds'
            detectors together.
        trim: leave so many of the highest healthy subjects out of the rank that sets the threshold,
            as a guard against some that aren't healthy; the wanted rate is then not guaranteed.
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
        false_components: float | None = None,
        patch: int | None = None,
        seed: int = 0,
        cache: bool = True,
        gate: bool = True,
        wrappers: Iterable[str] | None = None,
        calibration: Kind = "auto",
        folds: int = 5,
        refit: bool = False,
        trim: int = 0,
        **arguments: Any,
    ) -> None:
        state = ask(
            method, preset=preset, preprocess=preprocess, postprocess=postprocess,
            reduction=reduction, fpr=fpr, pixel_fpr=pixel_fpr, false_components=false_components,
            patch=patch, seed=seed, cache=cache, gate=gate, wrappers=wrappers,
            calibration=Calibration(calibration, folds, refit, trim), arguments=arguments,
        )  # fmt: skip
        self._begin(state)

    def __repr__(self) -> str:
        """Return what it is and whether it was fitted."""
        state = "not fitted"
        if self.fitted:
            state = f"{self.arguments['dims']}D, threshold {self.threshold_text}"
        return f"Detector('{self.card.id}', preset='{self.preset}', {state})"

    def _repr_html_(self) -> str:
        """Return what it is, and the scores of the healthy scans behind its threshold."""
        from normscan.report.charts import lone, score_strip

        card, found = self.card, self.scan_threshold
        facts = {
            "source": card.paper,
            "learns from": card.regime,
            "preset": self.preset,
            "state": f"fitted, {self.arguments['dims']}D" if self.fitted else "not fitted",
            "threshold": self.threshold_text if self.fitted else None,
        }
        drawn = ""
        if found is not None:
            none = np.empty(0)
            strip = score_strip(np.asarray(found.scores), none, none, found.threshold)
            drawn = notebook.svg_image(lone(strip), "scores of healthy scans") if strip else ""
        return notebook.page(f"Detector {card.id}", facts, more=drawn)

    @property
    def threshold_text(self) -> str:
        """The threshold of scores and its expected false alarms, in a few words."""
        found = self.scan_threshold
        if found is None:
            return "open"
        return f"{found.threshold:.4g}, expected false alarms {found.expected_fpr:.1%}"

    def _begin(self, state: State) -> None:
        self._take(state)
        # As asked for: fitting settles what depends on the cohort, refitting starts from here.
        self._asked = (
            state.preprocess, dict(state.arguments), state.calibration, state.reduction,
            state.replaces,
        )  # fmt: skip

    def _take(self, state: State) -> None:
        self.__dict__.update(vars(state))

    def asked(self) -> State:
        """Return its state before any fitting, which a new one begins with."""
        return self.changed(
            preprocess=self._asked[0], arguments=dict(self._asked[1]),
            calibration=self._asked[2], reduction=self._asked[3], replaces=self._asked[4],
            places=None, channels=(), method=None, scan_threshold=None,
            pixel_threshold=None, gate=None, training={}, fingerprint="", division=None, filled=(),
        )  # fmt: skip

    # ------------------------------------------------------------------ fitting

    def fit(
        self,
        cohort: Cohort | str | os.PathLike[str] | pd.DataFrame | Sequence[Any] | None,
        out: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        devices: int = 1,
        nodes: int = 1,
        precision: str = "32-true",
        strategy: Literal["ddp", "fsdp"] = "ddp",
        workers: int = 1,
        resume: bool = False,
        progress: bool = False,
        auxiliary: Cohort | str | os.PathLike[str] | None = None,
        exclude: Excluded | None = None,
    ) -> Detector:
        """Learn what healthy looks like, then set the thresholds on healthy validation scans.

        Args:
            cohort: a cohort, the path of its table or folder, a pandas table, or a list of healthy
                arrays, scans or files; None for a zero-shot method without healthy scans, which
                then takes no decisions.
            out: run folder for log, checkpoint and the finished detector; None keeps everything in
                memory and a temporary folder.
            device: ``auto``, ``cpu``, ``cuda`` or another accelerator of Lightning Fabric.
            devices: number of processes on each machine.
            nodes: number of machines, each with its own processes; torchrun or srun starts them.
            precision: of Lightning Fabric, such as ``32-true`` or ``bf16-mixed``.
            strategy: of several processes: each trains with the whole network (``ddp``), or holds a
                part of its parameters and of the optimiser's state (``fsdp``).
            workers: processes that prepare scans; the result is the same for any number.
            resume: go on from the checkpoint in ``out``.
            progress: show progress on stderr.
            auxiliary: a second cohort, for methods that learn from two domains.
            exclude: healthy scans to leave out, with the reasons, which are recorded:
                ``{"17": "motion"}``, or the path of a table with the columns scan and reason.

        Returns:
            Itself.

        Raises:
            CohortError: no healthy scans to train on or to set the threshold with.
            OutputError: ``out`` exists and ``resume`` is False, or it holds another configuration.
            ArgumentError: a value that the method can't be built with, no such device, or no cohort
                for a method that learns.
        """
        from normscan.detector.run import fit

        if out is None and devices * nodes > 1:
            raise ArgumentError("several processes need a run folder to share: give out.")
        if self.graph is not None:
            raise ArgumentError(
                f"an exported graph can't be trained: fit a new detector, create('{self.card.id}')."
            )
        if cohort is None:
            if self.card.regime != "zero-shot":
                raise ArgumentError(f"'{self.card.id}' learns from scans: give it a cohort.")
            cohort = Cohort.empty()
        folder = None if out is None else Path(out)
        with Progress(progress) as bar, as_cohort(cohort, self.seed) as given:
            if auxiliary is not None:
                given = given.with_auxiliary(auxiliary)
            machine = (device, devices, precision, nodes, strategy)
            left_out = reasons_of(exclude)
            self._take(fit(self.asked(), given, folder, machine, workers, resume, bar, left_out))
        return self

    def calibrate(
        self,
        healthy: Cohort | str | os.PathLike[str],
        *,
        fpr: float | None = None,
        pixel_fpr: float | None = None,
        by: str | None = None,
        without: Sequence[str] = (),
        progress: bool = False,
    ) -> Detector:
        """Set the thresholds anew on healthy scans that did not train, such as another site's.

        Nothing is trained, so new healthy scans like these are flagged at the rate that so many of
        them can promise. What was decided before stands in ``training["earlier"]``.

        Args:
            healthy: a cohort, or the path of its table or folder: its healthy scans of train and
                val, all of them where it has no split.
            fpr: false-positive rate of the decision; the detector's own by default.
            pixel_fpr: mean fraction of pixels of a healthy scan above the pixel threshold, likewise.
            by: column of the cohort, such as ``scanner``, whose groups get thresholds of their own
                where they are large enough; ``columns`` of ``predict`` then names a scan's.
            without: channels that scans may lack from now on: 0 stands for them, in these healthy
                scans and in every other, so p-values stay valid; findings say so.
            progress: show progress on stderr.

        Returns:
            Itself.

        Raises:
            CohortError: no healthy scans, or none that can be predicted.
            ArgumentError: the detector was not fitted, or a rate lies outside 0..1.
        """
        from normscan.detector.elsewhere import calibrated

        if not isinstance(healthy, Cohort):
            healthy = Cohort.read(healthy, fractions=(1.0, 0.0, 0.0))
        with Progress(progress) as bar:
            state = lacking(self, without) if without else self
            self._take(calibrated(state, healthy, (fpr, pixel_fpr), by, bar)[0])
        return self

    def update(
        self,
        more: Cohort | str | os.PathLike[str] | pd.DataFrame | Sequence[Any],
        *,
        workers: int = 1,
        progress: bool = False,
    ) -> Detector:
        """Let new healthy scans join what it knows, without fitting anew.

        For methods whose closed form takes them in: memory banks (``patchcore``, ``anomaly_dino``),
        Gaussians (``padim``, ``image_statistics``) and the mean image. Sums and whole banks end as
        if fitted to all scans at once, up to rounding; of a coreset's new scans a coreset of their
        own is taken. The scans of train join, and those of val set the thresholds anew; without
        these the thresholds stay and ``training["stale"]`` says how many scans joined since.

        Args:
            more: a cohort, the path of its table or folder, a pandas table, or a list of healthy
                arrays, scans or files. Without a split all of its healthy scans join.
            workers: processes that prepare scans.
            progress: show progress on stderr.

        Returns:
            Itself.

        Raises:
            ArgumentError: the detector was not fitted, or its method can't take in further scans.
            CohortError: no healthy scans that join.
        """
        from normscan.detector.update import updated

        with Progress(progress) as bar, as_cohort(more, self.seed, (1.0, 0.0, 0.0)) as given:
            self._take(updated(self, given, workers, bar)[0])
        return self

    # --------------------------------------------------------------- prediction

    def predict(
        self,
        scan: Scan | np.ndarray | str | os.PathLike[str] | list[str],
        foreground: np.ndarray | None = None,
        details: bool = True,
        force: bool = False,
        columns: Mapping[str, Any] | None = None,
        companions: Companions | None = None,
    ) -> Finding:
        """Score a scan and map where it departs from healthy.

        Args:
            scan: a scan, the path of a file, one path per channel, or an array (H, W) or
                (X, Y, Z) with a spacing of 1 mm.
            foreground: (*scan.shape) bool; computed if not given.
            details: also bring the restoration back to the scan's grid.
            force: score it whatever the quality gate says.
            columns: what the cohort says of it (age, sex, ...), for methods that use it.
            companions: what stands beside it on its grid, by name, for methods that use it:
                ``{"target": "t2.nii.gz"}``; a path, one path a channel, a scan, or an array.
                Further images of the case, of any shape: ``{"further": {"fundus": "photo.png"}}``.

        Raises:
            ScanError: the scan can't be read, doesn't fit the detector, or the quality gate refuses
                it as damaged or of another kind than the training scans.
            ArgumentError: the detector was not fitted.
        """
        return predict(self, scan, foreground, details, force, columns, companions)

    def predict_cohort(
        self,
        rows: Iterable[CohortRow],
        details: bool = False,
        force: bool = False,
        workers: int | None = None,
    ) -> Iterator[tuple[CohortRow, Finding | NormscanError]]:
        """Predict the scans of a cohort; a bad scan yields its error and the rest goes on.

        Scans share batches, so that a scan's map may differ in its last bits from ``predict``'s.

        Args:
            rows: scans; findings come in their order.
            details: also bring the restoration back to each scan's grid.
            force: score them whatever the quality gate says.
            workers: threads that read, check and prepare ahead; the findings are the same for any
                number. 0 works without; two by default where there are two cores.
        """
        return predict_rows(self, rows, details, force, workers)

    def patches_like(
        self, finding: Finding, rows: Iterable[CohortRow], count: int = 3
    ) -> list[dict[str, Any]]:
        """Return where in healthy scans a patch looks most like the most anomalous one of a finding.

        For methods that compare patches with those of training scans, such as ``patchcore``. Each
        scan is read and its features are made again, so this takes as long as predicting them.

        Args:
            finding: of this detector.
            rows: scans to look through, such as ``cohort.part("train")``.
            count: how many, each of another scan.

        Returns:
            For each its ``scan``, the ``distance`` of the features, and the ``index`` of the patch's
            middle in the scan's array, the nearest first. Scans that can't be read are passed over.

        Raises:
            ArgumentError: the method has no patches.
        """
        from normscan.detector.patches import patches_like

        return patches_like(self, finding, rows, count)

    # ------------------------------------------------------------------ storage

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling keeps: a fitted detector as its stored files, weights as safetensors."""
        if self.method is None:
            return self.__dict__.copy()
        from normscan.detector.storage import packed

        buffer = next(chain(self.method.parameters(), self.method.buffers()), None)
        device = "cpu" if buffer is None else str(buffer.device)
        kept = {"_asked": self._asked, "cache": self.cache}
        return {"files": packed(self), "device": device, "kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take back what ``__getstate__`` returned."""
        if "files" not in state:
            self.__dict__.update(state)
            return
        from normscan.detector.storage import unpacked

        self._take(unpacked(state["files"], state["device"]))
        self.__dict__.update(state["kept"])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the detector to a new folder: weights, ``detector.json`` and ``card.md``.

        Raises:
            OutputError: the folder exists and isn't empty, or the detector was not fitted.
        """
        from normscan.detector.storage import write_state

        folder = Path(folder)
        if self.graph is not None:
            raise OutputError("this detector is an exported graph: copy its file.")
        if self.method is None:
            raise OutputError("this detector was not fitted, so there is nothing to save.")
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder} exists. Choose another folder or remove it.")
        self._take(write_state(self, folder))
        return folder


def create(method: str, **options: Any) -> Detector:
    """Return an unfitted detector; see ``Detector`` for the options.

    Example:
        >>> import normscan as ns
        >>> ns.create("dae", preset="laptop", noise_std=0.3)
        Detector('dae', preset='laptop', not fitted)
    """
    return Detector(method, **options)


def load(
    folder: str | os.PathLike[str],
    device: str = "auto",
    threads: int | None = None,
    trusted: Sequence[str | os.PathLike[str]] | None = None,
) -> Detector:
    """Load a detector from the folder that ``fit`` or ``save`` wrote, or from an exported file.

    Args:
        folder: with ``detector.json`` and ``model.safetensors``; or an ``.onnx`` file of ``normscan
            export``, which is run by onnxruntime, on the processor and without torch; or
            ``hf:owner/name``, a repository of a Hugging Face hub, ``hf:owner/name@revision`` one at
            a branch, tag or commit.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: of the arithmetic of an exported file; None for onnxruntime's own choice.
        trusted: public keys one of which must have signed it, files or folders of them; by default
            those that ``NORMSCAN_TRUSTED`` names, and without any whoever made it is trusted.

    Raises:
        OutputError: no detector there, an unfinished or a damaged one, or none that is trusted; a hub
            that can't be reached.
    """
    detector = object.__new__(Detector)
    if Path(folder).suffix == ".onnx":
        if device not in ("auto", "cpu"):
            raise ArgumentError(f"device '{device}': an exported graph runs on the cpu.")
        check_trusted(Path(folder), trusted)
        detector._begin(read_exported(Path(folder), threads))
        return detector
    from normscan.detector.storage import bounds, read_state
    from normscan.io import hub

    if str(folder).startswith(hub.SCHEME):
        folder = hub.fetch(hub.Place.of(str(folder)), bounds())
    check_trusted(Path(folder), trusted)
    detector._begin(read_state(Path(folder), device))
    return detector
