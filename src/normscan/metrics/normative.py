"""Has the method learnt what healthy looks like? Metrics of the restored images themselves.

The three indices are those of Bercea et al., Nature Communications 16:1624, 2025. The released code
has their ingredients but not how they are combined, so the combinations here are working
definitions; `FORMULAS` states them and belongs beside every figure. They can't be compared with the
published indices, which also rest on other networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from normscan.errors import ArgumentError
from normscan.metrics.curves import Floats
from normscan.metrics.estimates import Estimate, number_subjects
from normscan.metrics.images import Subjects
from normscan.metrics.maps import checked_mask
from normscan.metrics.statistics import Interval, bca

if TYPE_CHECKING:
    from torch import Tensor

Extractor = Callable[["Tensor"], Mapping[str, "Tensor"]]

FORMULAS = {
    "rqi": "mean of SSIM, 1 - feature distance and 1 - MAE on healthy scans, each min-max scaled "
    "over the compared methods (working definition)",
    "rqi_unscaled": "mean of SSIM, 1 - feature distance and 1 - MAE on healthy scans",
    "ahi": "max(0, (FD(anomalous) - FD(restored)) / (FD(anomalous) - FD(unseen healthy))), FD the "
    "Frechet distance to healthy training scans (working definition)",
    "caci": "max(0, mean of SSIM outside lesions - SSIM inside) on scans with lesions (working "
    "definition)",
    "overall": "(harmonic mean of RQI and CACI + AHI) / 2",
    "feature": "squared distance of channel-normalised features, mean over taps, no learned weights",
}

MEASURES = ("mae", "mse", "ssim", "feature")


def measure_restoration(
    scan: npt.ArrayLike,
    restored: npt.ArrayLike,
    lesion: npt.ArrayLike | None = None,
    foreground: npt.ArrayLike | None = None,
    *,
    data_range: float = 1.0,
    extractor: Extractor | None = None,
) -> dict[str, float]:
    """Return how close a restored image is to the scan: everywhere, outside and inside lesions.

    Args:
        scan: image or volume (C, *spatial), as the method saw it.
        restored: its pseudo-healthy version, same shape.
        lesion: mask (*spatial), 0 is healthy; None for a healthy scan.
        foreground: pixels that count (*spatial); None for all. Flat background has an SSIM of 1.
        data_range: width of the range of intensities; errors are divided by it.
        extractor: maps images (B, 1, H, W) in about 0..1 to named feature maps, such as
            `normscan.networks.backbones.Backbone`; None leaves the feature distance NaN.

    Returns:
        `mae`, `mse`, `ssim` (3D windows in volumes) and `feature`, each also with `_healthy` and
        `_lesion` behind its name; NaN where there is no such pixel.

    Raises:
        ArgumentError: shapes that differ, values that aren't finite, or a data range of 0 or less.
    """
    before, after = _pair(scan, restored, data_range)
    shape = before.shape[1:]
    inside = np.ones(shape, bool)
    if foreground is not None:
        inside = checked_mask(foreground, shape, "foreground mask")
    sick = np.zeros(shape, bool)
    if lesion is not None:
        sick = checked_mask(lesion, shape, "lesion mask")
    gap = after - before
    maps = {
        "mae": np.abs(gap).mean(axis=0),
        "mse": np.square(gap).mean(axis=0),
        "ssim": ssim_map(before, after),
    }
    if extractor is not None:
        maps["feature"] = feature_distance(before, after, extractor)
    regions = {"": inside, "_healthy": inside & ~sick, "_lesion": inside & sick}
    return {
        measure + suffix: float(maps[measure][region].mean())
        if measure in maps and region.any()
        else math.nan
        for measure in MEASURES
        for suffix, region in regions.items()
    }


def ssim_map(scan: npt.ArrayLike, restored: npt.ArrayLike, data_range: float = 1.0) -> Floats:
    """Return the structural similarity (*spatial) in windows of 7 pixels, mean over the channels.

    Args:
        scan: (C, *spatial).
        restored: same shape.
        data_range: width of the range of intensities.

    Raises:
        ArgumentError: shapes that differ, a side below 3, or values that aren't finite.
    """
    from skimage.metrics import structural_similarity

    before, after = _pair(scan, restored, data_range)
    window = min(7, *before.shape[1:])
    if window < 3:
        raise ArgumentError(f"SSIM needs at least 3 pixels a side, not {before.shape[1:]}.")
    window -= 1 - window % 2
    each = [
        structural_similarity(x, y, data_range=1.0, win_size=window, full=True)[1]
        for x, y in zip(before, after, strict=True)
    ]
    return np.mean(each, axis=0)


def feature_distance(
    scan: npt.ArrayLike,
    restored: npt.ArrayLike,
    extractor: Extractor,
    data_range: float = 1.0,
    batch: int = 16,
) -> Floats:
    """Return a perceptual distance (*spatial) between two images, from deep features.

    LPIPS without its learned channel weights: at every tap the features are scaled to unit length
    over the channels and the squared differences summed, in [0, 4]; the taps are resized to the
    image and averaged (Zhang et al., CVPR 2018). Figures compare only with the same network and
    taps. Channels are taken one by one as grey images, volumes slice by slice along the last axis.

    Args:
        scan: (C, H, W) or (C, H, W, D).
        restored: same shape.
        extractor: maps images (B, 1, H, W) in about 0..1 to named feature maps (B, F, h, w).
        data_range: width of the range of intensities.
        batch: images at once.

    Raises:
        ArgumentError: shapes that differ or values that aren't finite.
    """
    import torch
    from torch.nn.functional import interpolate, normalize

    before, after = (_slices(x) for x in _pair(scan, restored, data_range))
    out = []
    with torch.no_grad():
        for start in range(0, len(before), batch):
            pair = [torch.from_numpy(x[start : start + batch]) for x in (before, after)]
            first, second = (extractor(x) for x in pair)
            maps = [
                interpolate(
                    (normalize(first[tap]) - normalize(second[tap])).square().sum(1, keepdim=True),
                    size=before.shape[2:],
                    mode="bilinear",
                    align_corners=False,
                )
                for tap in first
            ]
            out.append(torch.stack(maps).mean(0)[:, 0].double().numpy())
    shape = np.asarray(scan).shape
    slices = np.concatenate(out).reshape(shape[0], -1, *shape[1:3]).mean(axis=0)
    return slices[0] if len(shape) == 3 else np.moveaxis(slices, 0, -1)


def image_features(
    images: Sequence[npt.ArrayLike], extractor: Extractor, data_range: float = 1.0, batch: int = 16
) -> Floats:
    """Return one feature vector (n, features) an image: all taps averaged over the image.

    Args:
        images: each (C, H, W) or (C, H, W, D); slices and channels are averaged.
        extractor: maps images (B, 1, H, W) in about 0..1 to named feature maps.
        data_range: width of the range of intensities.
        batch: slices at once.
    """
    import torch

    rows = []
    with torch.no_grad():
        for image in images:
            slices = _slices(_pair(image, image, data_range)[0])
            parts = []
            for start in range(0, len(slices), batch):
                taps = extractor(torch.from_numpy(slices[start : start + batch]))
                parts.append(torch.cat([tap.mean((2, 3)) for tap in taps.values()], dim=1))
            rows.append(torch.cat(parts).mean(0).double().numpy())
    return np.stack(rows)


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the squared Frechet distance of two Gaussians fitted to features.

    |mean difference|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)). The last trace is the sum of the
    singular values of the product of the centred features, so no square root of a matrix is needed
    (Heusel et al., NeurIPS 2017). Biased upwards for few images: compare only sets of
    about the same size.

    Args:
        a: (n, features), at least 2 rows.
        b: (m, features), at least 2 rows.

    Raises:
        ArgumentError: other shapes, or values that aren't finite.
    """
    return _distance(_gaussian(a), _gaussian(b))


def _gaussian(features: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the mean (f,) of features (n, f) and R (min(n, f), f) with R^T R the covariance."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
        raise ArgumentError(
            f"A Frechet distance needs at least 2 rows of finite features, not shape {x.shape}."
        )
    mean = x.mean(axis=0)
    root: Any = np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")
    return mean, root


def _distance(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> float:
    (mean_a, x), (mean_b, y) = a, b
    if mean_a.shape != mean_b.shape:
        raise ArgumentError(
            f"A Frechet distance needs the same features of both sets, not {mean_a.size} and "
            f"{mean_b.size}."
        )
    shift, cross = mean_a - mean_b, np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(max(0.0, shift @ shift + np.sum(x**2) + np.sum(y**2) - 2 * cross))


def restoration_estimates(
    rows: Sequence[Mapping[str, float]], subjects: Subjects = None, **options: Any
) -> dict[str, Estimate]:
    """Return every measure's mean with its BCa interval by subject, `rqi_unscaled` and `caci`.

    Args:
        rows: what `measure_restoration` returned, one for each scan; NaN ones are left out of a
            mean. RQI's parts are meant for healthy scans, so give healthy and other scans apart.
        subjects: subject of each scan; None where every scan is a subject of its own.
        **options: `replicates`, `seed` and `confidence` of `statistics.bca`.

    Raises:
        ArgumentError: no rows, or lengths that differ.
    """
    means, count = _means(rows, subjects)

    def statistics(weights: Floats) -> dict[str, Floats]:
        found = means(weights)
        found["caci"] = np.maximum(found.pop("contrast"), 0)
        found["rqi_unscaled"] = (found["ssim"] + 2 - found["feature"] - found["mae"]) / 3
        return found

    point = {name: float(v[0]) for name, v in statistics(np.ones((1, count))).items()}
    return bca(statistics, point, count, **options)


def restoration_quality(
    methods: Mapping[str, Sequence[Mapping[str, float]]], subjects: Subjects = None, **options: Any
) -> dict[str, Estimate]:
    """Return RQI of each of several methods on the same healthy scans, with intervals by subject.

    RQI is relative to the methods compared: the best of them in SSIM, feature distance and MAE has
    1, the worst in all has 0. The scale is that of all subjects and stays fixed while subjects are
    resampled. A measure in which all methods agree, or a single method, gives NaN.

    Args:
        methods: for each method its rows of `measure_restoration`, same scans in the same order.
        subjects: subject of each scan; None where every scan is a subject of its own.
        **options: `replicates`, `seed` and `confidence` of `statistics.bca`.

    Raises:
        ArgumentError: no method, or numbers of rows that differ.
    """
    if not methods or len({len(rows) for rows in methods.values()}) != 1:
        raise ArgumentError("RQI compares methods on the same scans: give as many rows for each.")
    made = {name: _means(rows, subjects) for name, rows in methods.items()}
    count = next(iter(made.values()))[1]
    parts = ("ssim", "feature", "mae")
    point = {name: means(np.ones((1, count))) for name, (means, _) in made.items()}
    ends = {}
    for part in parts:
        values = [float(found[part][0]) for found in point.values()]
        low, high = min(values), max(values)
        # SSIM is better when high, the others when low.
        worst, best = (low, high) if part == "ssim" else (high, low)
        ends[part] = worst, best - worst if high > low else math.nan

    def statistics(weights: Floats) -> dict[str, Floats]:
        found = {name: means(weights) for name, (means, _) in made.items()}
        return {
            name: sum(((v[p] - ends[p][0]) / ends[p][1] for p in parts), np.zeros(len(weights))) / 3
            for name, v in found.items()
        }

    whole = {name: float(v[0]) for name, v in statistics(np.ones((1, count))).items()}
    return bca(statistics, whole, count, **options)


def anomaly_to_healthy(
    training: npt.ArrayLike,
    healthy: npt.ArrayLike,
    anomalous: npt.ArrayLike,
    restored: npt.ArrayLike,
    subjects_healthy: Subjects = None,
    subjects_anomalous: Subjects = None,
    confidence: float = 0.95,
) -> Interval:
    """Return AHI: how far restoring moves anomalous scans to where unseen healthy ones are.

    0 where the restored scans are as far from the healthy training scans as the anomalous ones were
    (or further), 1 where they are as near as unseen healthy ones. NaN where the anomalous scans
    aren't further away than the unseen healthy ones: the features don't see the anomalies. The
    interval is normal with the jackknife's error over both groups of subjects, the training scans
    fixed: a bootstrap repeats images, which biases a Frechet distance.

    Args:
        training: features (n, features) of healthy training scans.
        healthy: of unseen healthy scans.
        anomalous: of scans with anomalies.
        restored: of the same scans restored, in the same order.
        subjects_healthy: subject of each unseen healthy scan.
        subjects_anomalous: subject of each anomalous scan.
        confidence: coverage of the interval, in (0, 1).

    Raises:
        ArgumentError: tables that don't fit, or fewer than 2 scans in one.
    """
    from scipy.special import ndtri

    unseen, sick, mended = (np.asarray(x, np.float64) for x in (healthy, anomalous, restored))
    if sick.shape != mended.shape:
        raise ArgumentError(
            f"AHI needs every anomalous scan restored, not {len(mended)} of {len(sick)}."
        )
    fixed = _gaussian(training)

    def to_training(features: Floats) -> float:
        return _distance(_gaussian(features), fixed)

    owner_u, count_u = number_subjects(subjects_healthy, len(unseen))
    owner_s, count_s = number_subjects(subjects_anomalous, len(sick))

    def index(near: float, keep: npt.NDArray[np.bool_] | slice = slice(None)) -> float:
        far = to_training(sick[keep])
        return (far - to_training(mended[keep])) / (far - near)

    near, far = to_training(unseen), to_training(sick)
    n = count_u + count_s
    if far <= near:
        why = "the anomalous scans are no further from healthy than unseen healthy ones"
        return Interval(math.nan, math.nan, math.nan, n, 0, "none", why)
    raw = index(near)
    value = max(0.0, raw)
    if min(count_u, count_s) < 3:
        return Interval(value, math.nan, math.nan, n, 0, "none", "fewer than 3 subjects")
    variance = 0.0
    for count, owner, side in ((count_u, owner_u, 0), (count_s, owner_s, 1)):
        out = []
        for subject in range(count):
            keep = owner != subject
            out.append(index(near, keep) if side else index(to_training(unseen[keep])))
        variance += (count - 1) * float(np.var(out))
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(variance)
    low, high = max(0.0, raw - half), max(0.0, raw + half)
    return Interval(value, low, high, n, 0, "jackknife")


def normative_score(rqi: float, ahi: float, caci: float) -> float:
    """Return (harmonic mean of RQI and CACI + AHI) / 2, the ranking of the released code."""
    both = 2 * rqi * caci / (rqi + caci) if rqi + caci > 0 else 0.0
    return (both + ahi) / 2


def _pair(
    scan: npt.ArrayLike, restored: npt.ArrayLike, data_range: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return both images as float32 in units of the data range."""
    before, after = (np.asarray(x, np.float64) for x in (scan, restored))
    if before.ndim not in (3, 4) or before.shape != after.shape or not before.size:
        raise ArgumentError(
            f"A scan and its restored image are (C, H, W) or (C, H, W, D) and agree, not "
            f"{before.shape} and {after.shape}."
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ArgumentError("The scan or its restored image has values that aren't finite.")
    if not data_range > 0:
        raise ArgumentError(f"The data range must be above 0, not {data_range}.")
    return (before / data_range).astype(np.float32), (after / data_range).astype(np.float32)


def _slices(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return (C * D, 1, H, W): channels and slices one by one."""
    volume = image if image.ndim == 4 else image[..., None]
    return np.ascontiguousarray(np.moveaxis(volume, -1, 1).reshape(-1, 1, *volume.shape[1:3]))


def _means(
    rows: Sequence[Mapping[str, float]], subjects: Subjects
) -> tuple[Callable[[Floats], dict[str, Floats]], int]:
    """Return each measure's mean over the scans under subject weights, and the subjects."""
    if not rows:
        raise ArgumentError("No scan was measured; there is nothing to average.")
    subject, count = number_subjects(subjects, len(rows))
    table = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    table["contrast"] = table["ssim_healthy"] - table["ssim_lesion"]
    sums = {}
    for name, values in table.items():
        known = ~np.isnan(values)
        total = np.bincount(subject[known], weights=values[known], minlength=count)
        sums[name] = total, np.bincount(subject[known], minlength=count).astype(np.float64)

    def means(weights: Floats) -> dict[str, Floats]:
        found = {}
        for name, (total, scans) in sums.items():
            size = weights @ scans
            found[name] = np.divide(
                weights @ total, size, out=np.full(size.shape, np.nan), where=size > 0
            )
        return found

    return means, count
