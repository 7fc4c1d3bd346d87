"""What a detector says about one scan."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan import notebook
from normscan.display import Plane, leaves, map_scale, planes
from normscan.errors import OutputError
from normscan.identity import names_are_kept
from normscan.io import atomic_path, map_suffix, stem, write_map
from normscan.io.shown import write_shown
from normscan.io.values import finite
from normscan.scan import Scan
from normscan.scores.postprocess import drop_small

if TYPE_CHECKING:
    from PIL.Image import Image

    from normscan.detector.further import FurtherMap
    from normscan.dicom import Results
    from normscan.quality import Verdict

NOTICE = "Research use. Not for diagnosis."

UNDECIDED = (
    "Not calibrated: there were no healthy scans to set a threshold, so the decision is left open. "
    "Scans get a map and a raw score, but no p-value, decision or segmentation."
)


ALONE = (
    "The one healthy subject taught the detector, and it can't be held against itself. "
    "A second one would allow a threshold; 19 can promise 5 % of false alarms."
)


@dataclass(eq=False, repr=False)
class Finding:
    """The result for a scan, in the scan's own geometry.

    Attributes:
        scan: the scan as it came in.
        map: (*scan.shape) float32, higher is more anomalous; None for a method that only scores.
        score: of the whole scan.
        p_value: share of healthy scans that score as high, by the conformal rule; None before the
            detector was calibrated.
        anomalous: whether the score is above the threshold; None where it has none.
        threshold: of the score.
        false_alarms: share of healthy scans that are flagged at that threshold: ``wanted``,
            ``expected``, and the ends ``low`` and ``high`` of the expectation; None without one.
        ranked: how many ``healthy`` subjects it was compared with, how many score ``as_high``, and
            how many ``may_be_as_high`` for it to be anomalous; None without a threshold.
        pixel_threshold: of the map; above it lies the segmentation.
        pixel_shares: scores of the map, rising, with the share of healthy pixels above each; empty
            where no healthy map is known.
        pixel_rule: what that threshold bounds on healthy scans, in words.
        smallest_component: components of the segmentation of so many voxels or fewer are dropped.
        reconstruction: (C, *scan.shape) in the scale of the prepared scan, where the method
            restores.
        prepared: (C, *scan.shape) the prepared scan brought back, to compare the restoration with.
        foreground: (*scan.shape) bool.
        labels: (*scan.shape) label map of the anatomy, 0 for none; components then name their
            ``region``.
        label_names: of the regions by label.
        regions: how unusual each is, see ``normscan.detector.regions.Regions``.
        quality: what the quality gate says of the scan; None where the detector has no gate.
        notes: what the preprocessing steps found worth saying.
        facts: numbers that they measured.
        provenance: method, detector hash, version, source.
        seconds: time for the prediction, reading and writing left out.
        stages: seconds of each stage: ``read``, ``gate``, ``prepare``, ``network``, ``decide`` (back
            to the scan's grid, score and threshold). Threads overlap them across scans, and scans
            that share a batch share its time.
        seen: what the scan was for the detector: ``trained``, ``calibrated`` or nothing.
        further: map of each further image of the case, on its own grid, by name.
    """

    scan: Scan
    map: np.ndarray | None
    score: float
    p_value: float | None = None
    anomalous: bool | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    false_alarms: Mapping[str, float] | None = None
    ranked: Mapping[str, int] | None = None
    pixel_rule: str = ""
    pixel_shares: tuple[tuple[float, float], ...] = ()
    smallest_component: int = 0
    reconstruction: np.ndarray | None = None
    prepared: np.ndarray | None = None
    foreground: np.ndarray | None = None
    labels: np.ndarray | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)
    regions: list[dict[str, Any]] = field(default_factory=list)
    quality: Verdict | None = None
    notes: tuple[str, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    seen: str = ""
    further: Mapping[str, FurtherMap] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return score and decision, no arrays."""
        p = "" if self.p_value is None else f", p {self.p_value:.3g}"
        return f"Finding({self.scan.name}: score {self.score:.5g}{p}, {self.decision})"

    def _repr_html_(self) -> str:
        """Return what it says, and pictures at the peak of the map, for a notebook."""
        facts = {
            "score": f"{self.score:.4g}",
            "p-value": None if self.p_value is None else f"{self.p_value:.3g}",
            "decision": self.decision,
            "components": len(self.components()) or None,
            "quality": self.quality.status if self.quality else None,
        }
        found, scale = self._planes(None)
        pictures = [(plane, scale, "") for plane in found]
        return notebook.page(
            f"Finding {self.scan.name}", facts, pictures, f"<small>{NOTICE}</small>"
        )

    def show(self, at: tuple[int, ...] | None = None, turn: bool = True) -> Any:
        """Return a figure of the map over its scan.

        Args:
            at: index of the voxel through which planes go; the peak of the map by default.
            turn: show a volume in a notebook as a widget, where ipyniivue is installed.
        """
        found, scale = self._planes(at)
        if turn and at is None and self.scan.dims == 3:
            volumes = [(self.scan.name, self.scan.data[0], None)]
            over = [] if self.map is None else [("anomaly map", self.map, scale)]
            if (widget := notebook.turned([*volumes, *over], self.scan.affine)) is not None:
                return widget
        title = f"{self.scan.name}: score {self.score:.4g}, {self.decision}"
        return notebook.draw(found, scale, title)

    def _planes(self, at: tuple[int, ...] | None) -> tuple[list[Plane], tuple[float, float] | None]:
        """Return planes through a voxel, and the scale of the map."""
        scan = self.scan
        scale = None if self.map is None else map_scale([self.map], self.pixel_threshold)
        return planes(scan.data, scan.affine, self.map, at, rgb=scan.is_rgb), scale

    @property
    def segmentation(self) -> np.ndarray | None:
        """(*scan.shape) bool: the map above the pixel threshold, without small components."""
        if self.map is None or self.pixel_threshold is None:
            return None
        asked = (self.map, self.pixel_threshold, self.smallest_component)
        known = self.__dict__.get("_segmented")
        if known is None or known[0] is not self.map or known[1:-1] != asked[1:]:
            above = np.asarray(self.map > self.pixel_threshold)
            if self.smallest_component:
                above = drop_small(above, self.smallest_component)
            known = self.__dict__["_segmented"] = (*asked, above)
        return np.asarray(known[-1])

    @property
    def decision(self) -> str:
        """The decision in words; ``open`` where no healthy scans set a threshold.

        Beside ``anomalous`` stands how many healthy scans are called so too.
        """
        if self.anomalous is None:
            return "decision open, not calibrated on healthy scans"
        if not self.anomalous:
            return "within healthy range"
        if self.false_alarms is None:
            return "anomalous"
        wanted, expected = self.false_alarms["wanted"], self.false_alarms["expected"]
        text = f"so are {100 * expected:.2g} % of healthy scans"
        if expected > wanted + 1e-9:
            text += f", {100 * wanted:.2g} % were wanted"
        return f"anomalous ({text})"

    def neighbours(self) -> list[dict[str, Any]]:
        """Return the healthy training scans that look most alike, the nearest first.

        Each has its name ``scan``, and how many ``times`` as far it lies as healthy scans lie from
        each other at most, over all views and ``by_view``: what it shows (``picture``), the
        ``histogram`` of its values, its ``texture``, its ``outline``. Of a volume at a detector of
        pictures its middle slice is compared. Empty where the detector has no quality gate, or one
        that knows no names.
        """
        return [] if self.quality is None else list(self.quality.neighbours)

    def why(self) -> list[str]:
        """Return why it was flagged, or what would have been needed to flag it, in sentences."""
        said = []
        if self.ranked is not None and self.threshold is not None and self.p_value is not None:
            n, as_high, may = (self.ranked[k] for k in ("healthy", "as_high", "may_be_as_high"))
            said.append(
                f"{as_high} of {n} healthy subjects score as high; for a flag at most {may} may."
            )
            if not self.anomalous:
                text = f"A score above {self.threshold:.4g} would have been needed"
                if 0 < self.score < self.threshold:
                    text += f", {self.threshold / self.score:.3g} times its own"
                said.append(f"{text}, or a rate of false alarms of {self.p_value:.3g}.")
        if alike := self.neighbours():
            names = ", ".join(f"{each['scan']} ({each['times']:.2g})" for each in alike)
            farthest = max(alike[0]["by_view"], key=alike[0]["by_view"].__getitem__)
            said.append(
                f"The healthy training scans most like it: {names}; 1 is as far as healthy scans lie "
                f"at most. From the first it differs most in its {farthest}."
            )
        return said

    def components(self) -> list[dict[str, Any]]:
        """Connected components of the segmentation, the highest peak first.

        Each has its number of voxels, ``volume_mm3`` (``area_mm2`` in 2D), the ``peak`` of the map,
        the ``peak_index`` in the array, the ``box`` around it (first index of each axis, then the
        one after the last), and the place of the peak in RAS+ millimetres, ``peak_mm``. A scan
        without a spacing has no millimetres. With a label map of the anatomy there is the
        ``region`` that holds most of it, None outside all, and its ``share``.
        """
        return self._ranked()[-1]

    def component_labels(self) -> np.ndarray | None:
        """(*scan.shape) int32: 1 in the first of the ``components``, 2 in the second, 0 outside."""
        box, labels, rank, _ = self._ranked()
        if labels is None or self.map is None:
            return None
        whole = np.zeros(self.map.shape, np.int32)
        whole[box] = rank[labels]
        return whole

    def _ranked(self) -> tuple[Any, np.ndarray | None, np.ndarray, list[dict[str, Any]]]:
        """Return the box around all components, labels within, their ranks, components by rank."""
        from scipy import ndimage

        from normscan.scores.components import box_of, connected

        segmentation = self.segmentation
        if segmentation is None or self.map is None:
            return (), None, np.zeros(1, np.int32), []
        # Of a large volume only few voxels have a label: no others are looked at.
        box = box_of(segmentation)
        corner = np.array([side.start for side in box])
        labels = connected(segmentation[box])
        boxes = ndimage.find_objects(labels) if labels.size else []
        inside = np.flatnonzero(labels)
        numbers, values = labels.ravel()[inside], self.map[box].ravel()[inside]
        peaks = np.full(len(boxes) + 1, -np.inf, np.float32)
        np.maximum.at(peaks, numbers, values)
        highest = np.flatnonzero(values == peaks[numbers])
        known, first = np.unique(numbers[highest], return_index=True)  # of equal ones the first
        peaks, at, voxels = peaks[known], inside[highest[first]], np.bincount(numbers)[known]
        unit = "volume_mm3" if self.scan.dims == 3 else "area_mm2"
        rank = np.zeros(int(known.max(initial=0)) + 1, np.int32)
        found = []
        for number, i in enumerate(np.lexsort((at, -peaks)), 1):
            rank[known[i]] = number
            place = np.array(np.unravel_index(at[i], labels.shape)) + corner
            each: dict[str, Any] = {"voxels": int(voxels[i]), "peak": float(peaks[i])}
            each["peak_index"] = [int(k) for k in place]
            ends = np.array([(s.start, s.stop) for s in boxes[i]]).T + corner
            each["box"] = ends.ravel().tolist()
            if self.scan.measured:
                index = np.array([*place, *[0] * (3 - self.scan.dims), 1.0])
                each[unit] = float(voxels[i] * self.scan.voxel_volume)
                each["peak_mm"] = [round(float(v), 3) for v in (self.scan.affine @ index)[:3]]
            if self.labels is not None:
                each |= self._region(self.labels[box][labels == i + 1])
            found.append(each)
        return box, labels, rank, found

    def _region(self, inside: np.ndarray) -> dict[str, Any]:
        """The region that holds most of the voxels with these labels."""
        counts = np.bincount(inside[inside > 0], minlength=1)
        label = int(counts.argmax())
        name = self.label_names.get(label, f"region {label}") if label else None
        return {"region": name, "share": round(float(counts[label] / inside.size), 4)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the arrays, as JSON knows it."""
        facts = finite({name: float(value) for name, value in self.facts.items()})
        return {
            "scan": self.scan.name,
            "score": self.score,
            "p_value": self.p_value,
            "anomalous": self.anomalous,
            "decision": self.decision,
            "threshold": self.threshold,
            "false_alarms": None if self.false_alarms is None else dict(self.false_alarms),
            "ranked": None if self.ranked is None else dict(self.ranked),
            "why": self.why(),
            "pixel_threshold": self.pixel_threshold,
            "pixel_rule": self.pixel_rule,
            "pixel_shares": self.pixel_shares,
            "components": self.components(),
            "regions": self.regions,
            "further": {name: image.to_dict() for name, image in self.further.items()},
            "quality": None if self.quality is None else self.quality.to_dict(),
            "preprocessing": {"notes": list(self.notes), "facts": facts},
            "seconds": round(self.seconds, 4),
            "stages": {name: round(seconds, 4) for name, seconds in self.stages.items()},
            "provenance": self.provenance,
            "notice": NOTICE,
        }

    def save(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        overlay: bool = True,
        formats: Sequence[str] = ("nifti",),
    ) -> list[Path]:
        """Write map, segmentation, an overlay picture and ``*_finding.json``.

        NIfTI scans get NIfTI maps with the same affine; pictures get a 32-bit TIFF map and a PNG
        mask. A scan from DICOM may get DICOM objects beside them or instead, see
        ``normscan.dicom.write_dicom``.

        Args:
            folder: made if missing.
            name: start of the file names; the scan's file name by default.
            overlay: draw the picture, too.
            formats: ``nifti`` for map, segmentation and picture; ``view`` for the scan itself and its
                restoration, as ``normscan view`` shows them; ``dicom`` for objects of the
                archive, with the map in float32, or ``dicom-uint16`` with it in 16 bits;
                ``dicom-labelmap`` stores the segments as one label map, ``dicom-pdf`` adds the page
                about the finding; ``pdf`` is that page as a file. The JSON file is always written.

        Returns:
            The files written.

        Raises:
            ArgumentError: an unknown format, or DICOM without highdicom.
            OutputError: DICOM for a scan that doesn't come from DICOM.
        """
        from normscan.detector.formats import checked_formats, dicom_options

        folder = Path(folder)
        source = self.scan.source
        name = name or (stem(source) if source else "scan")
        formats = checked_formats(formats)
        written = []
        if options := dicom_options(formats):
            from normscan.dicom import write_dicom

            written += write_dicom(folder, name, self._results(name), options)
        if "pdf" in formats:
            written.append(folder / f"{name}.pdf")
            with atomic_path(written[-1]) as temporary:
                temporary.write_bytes(self.page())
        if "nifti" in formats:
            written += self._write_files(folder, name, overlay)
            written += [each.save(folder, name, of) for of, each in self.further.items()]
        if "view" in formats:
            written += self._write_view(folder, name)
        path = folder / f"{name}_finding.json"
        # By the name that it is saved under: a file may be named after a patient.
        about = self.to_dict() | ({} if names_are_kept() else {"scan": name})
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n")
        return [*written, path]

    def _write_files(self, folder: Path, name: str, overlay: bool) -> list[Path]:
        """Write map, picture and mask."""
        suffix, written = map_suffix(self.scan), []
        if self.map is not None:
            written.append(write_map(folder / f"{name}_map{suffix}", self.map, self.scan))
            if overlay:
                written.append(self._write_overlay(folder / f"{name}_overlay.png"))
        segmentation = self.segmentation
        if segmentation is not None:
            path = folder / f"{name}_mask{'.nii.gz' if suffix == '.nii.gz' else '.png'}"
            written.append(write_map(path, segmentation.astype(np.uint8), self.scan))
        return written

    def _write_view(self, folder: Path, name: str) -> list[Path]:
        """Write what the viewer lays the map over: 16 bits, the first channel or three colours."""
        shown = {"scan": self.scan.data, "restoration": self.reconstruction}
        return [
            write_shown(folder / f"{name}_{kind}.nii.gz", data, self.scan)
            for kind, data in shown.items()
            if data is not None
        ]

    def _results(self, name: str) -> Results:
        """Return what the writer of DICOM takes."""
        from normscan.dicom import Results

        if self.scan.series is None:
            raise OutputError(
                f"{name}: DICOM results stand beside a DICOM series, and this scan isn't one as a "
                "whole. Give the series itself, or leave 'dicom' out of the formats."
            )
        rates, made_by = self.false_alarms or {}, self.provenance
        return Results(
            self.scan.series,
            self.scan.affine,
            self.map,
            self.component_labels(),
            self.score,
            self.components(),
            p_value=self.p_value,
            anomalous=self.anomalous,
            threshold=self.threshold,
            wanted=rates.get("wanted"),
            expected=rates.get("expected"),
            pixel_threshold=self.pixel_threshold,
            quality=None if self.quality is None else self.quality.status,
            method=str(made_by.get("method", "")),
            version=str(made_by.get("normscan", "")),
            detector=str(made_by.get("detector_sha256", "")),
            # The name of the scan stays out: it may be anything.
            picture=None if self.map is None else lambda: np.asarray(self._overlay(NOTICE)),
            page=self.page,
        )

    def page(self) -> bytes:
        """Return the finding on one page, as PDF; neither the scan's name nor its place is on it."""
        from normscan.report.onepage import one_page

        def number(value: float | None) -> str:
            return "-" if value is None else f"{value:.4g}"

        made_by, quality = self.provenance, self.quality
        facts = {
            "decision": self.decision,
            "score": number(self.score),
            "p-value against healthy scans": number(self.p_value),
            "threshold": number(self.threshold),
            "quality gate": "not checked" if quality is None else quality.status,
            "components": str(len(self.components())),
            "method": f"{made_by.get('method', '')} ({made_by.get('preset', '')})",
            "detector": str(made_by.get("detector_sha256", ""))[:32],
            "normscan": str(made_by.get("normscan", "")),
        }
        picture = None if self.map is None else np.asarray(self._overlay(" "))
        return one_page("Anomaly detection", facts, self.components(), picture, NOTICE)

    def _overlay(self, title: str = "") -> Image:
        from normscan.report.overlay import overlay_image

        return overlay_image(self.picture(title=title), self.pixel_threshold)

    def _write_overlay(self, path: Path) -> Path:
        drawn = self._overlay()
        with atomic_path(path) as temporary:
            drawn.save(temporary, "PNG", compress_level=3)  # twice as fast, an eighth larger
        return path

    def picture(
        self,
        mask: np.ndarray | None = None,
        label: int | None = None,
        title: str = "",
        radiological: bool | None = None,
        index: int | None = None,
    ) -> Any:
        """Return a ``Picture`` for figures and reports; a volume shows its most telling slice.

        Args:
            mask: (*scan.shape) true lesion.
            label: 1 anomalous, 0 healthy.
            title: name of the scan by default.
            radiological: the patient's right at the left; by default for scans from DICOM.
            index: of the slice of a volume, instead of the most telling one.
        """
        from normscan.report.picture import best_slice

        told = self.scan.series is not None if radiological is None else radiological
        views: dict[str, tuple[Plane, ...]] = {}
        if self.scan.dims == 3 and self.map is not None:
            for name, through in (("around", planes), ("leaves", leaves)):
                data, affine = self.scan.data, self.scan.affine
                views[name] = tuple(through(data, affine, self.map, radiological=told))
        compare = self.reconstruction is not None and self.prepared is not None
        image = self.prepared if compare and self.prepared is not None else self.scan.data
        return best_slice(
            image,
            np.zeros(self.scan.shape, np.float32) if self.map is None else self.map,
            self.scan.affine,
            reconstruction=self.reconstruction if compare else None,
            mask=mask,
            title=title or self.scan.name,
            score=self.score,
            p_value=float("nan") if self.p_value is None else self.p_value,
            label=label,
            anomalous=bool(self.anomalous),
            rgb=self.scan.is_rgb and len(image) == 3,
            radiological=told,
            index=index,
            **views,
        )
