"""A detector as scikit-learn knows one: for pipelines, cross-validation and searches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from normscan.detector import Detector, Finding
from normscan.errors import ArgumentError
from normscan.scan import Scan


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """Outlier detector for images and volumes, all of which train as healthy.

    As scikit-learn has it, +1 is an inlier and -1 an outlier, and a higher score is more normal:
    ``score_samples`` is minus the score of normscan.

    Args:
        method: id of a normscan method.
        preset: of the method.
        contamination: rate of false alarms on new healthy images, between 0 and 1.
        channel_axis: axis of an image that counts channels; None for images without such an axis.
        options: further options of ``normscan.Detector`` and arguments of the method, by name, such
            as ``{"size": 64, "steps": 200}``.
        random_state: seed of everything random, a whole number.
        device: see ``Detector.fit``.

    Attributes:
        detector_: the fitted normscan detector.
        offset_: minus the threshold: ``decision_function`` is ``score_samples`` less this.

    Example:
        >>> from normscan.sklearn import AnomalyDetector
        >>> model = AnomalyDetector("padim").fit(healthy)  # doctest: +SKIP
        >>> model.predict(images)  # doctest: +SKIP
        array([ 1, -1,  1])
    """

    def __init__(
        self,
        method: str = "image_statistics",
        *,
        preset: str = "laptop",
        contamination: float = 0.05,
        channel_axis: int | None = None,
        options: Mapping[str, Any] | None = None,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.method = method
        self.preset = preset
        self.contamination = contamination
        self.channel_axis = channel_axis
        self.options = options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Iterable[np.ndarray], y: object = None) -> Self:
        """Learn what healthy images look like, and the threshold.

        Args:
            X: (n, *shape) or n arrays of healthy images, each of a person of its own; with
                ``channel_axis`` its images have that axis, too.
            y: not looked at.
        """
        options = {"calibration": "split", **(self.options or {})}
        detector = Detector(
            self.method, preset=self.preset, fpr=self.contamination, seed=self.random_state,
            **options,
        )  # fmt: skip
        self.detector_ = detector.fit(self._scans(X), device=self.device)
        threshold = detector.scan_threshold
        self.offset_ = -np.inf if threshold is None else -threshold.threshold
        return self

    def findings(self, X: Iterable[np.ndarray]) -> list[Finding]:
        """Return what normscan finds in each image: map, score, p-value."""
        check_is_fitted(self)
        return [self.detector_.predict(scan, details=False, force=True) for scan in self._scans(X)]

    def score_samples(self, X: Iterable[np.ndarray]) -> np.ndarray:
        """(n,) how normal each image is: minus its anomaly score."""
        return np.array([-finding.score for finding in self.findings(X)])

    def decision_function(self, X: Iterable[np.ndarray]) -> np.ndarray:
        """(n,) negative for outliers, positive for inliers."""
        return np.asarray(self.score_samples(X) - self.offset_)

    def predict(self, X: Iterable[np.ndarray]) -> np.ndarray:
        """(n,) -1 for outliers, 1 for inliers."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def transform(self, X: Iterable[np.ndarray]) -> np.ndarray:
        """(n, *shape) anomaly maps of images of one shape."""
        findings = self.findings(X)
        maps = [finding.map for finding in findings if finding.map is not None]
        if len(maps) < len(findings):
            raise ArgumentError(f"'{self.method}' only scores; it has no maps.")
        return np.stack(maps)

    def _scans(self, X: Iterable[np.ndarray]) -> list[Scan]:
        return [self._scan(image) for image in X]

    def _scan(self, image: np.ndarray) -> Scan:
        image = np.asarray(image)
        if image.ndim - (self.channel_axis is not None) not in (2, 3):
            raise ArgumentError(
                f"an image of shape {image.shape} is neither 2D nor 3D: X is (n, height, width) or (n, "
                "x, y, z), with an axis of channels where channel_axis says so."
            )
        if self.channel_axis is None:
            return Scan.from_array(image, stack=True)
        image = np.moveaxis(image, self.channel_axis, 0)
        names = tuple(f"channel{n}" for n in range(len(image)))
        return Scan.from_array(image, channels=names if len(names) > 1 else ("image",))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags
