"""Healthy images for the experiments, and the restorations of a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.errors import ArgumentError, CohortError, NormscanError
from normscan.identity import about_files

if TYPE_CHECKING:
    from normscan.cohort import Cohort
    from normscan.detector import Detector
    from normscan.diagnostics.landscape import Restore

BATCH = 16


def healthy_images(
    rows: Cohort,
    count: int,
    size: int = 256,
    detector: Detector | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Prepare healthy scans, grey, 0 to 1; of a volume the slice with the most foreground.

    Args:
        rows: of which the healthy ones are taken, evenly, one of each subject as far as they reach.
        count: images at most.
        size: pixels along each axis.
        detector: prepares them in its own way, in its own size and scale, and as volumes if it
            works on volumes.
        track: passes scans on and shows their number.

    Returns:
        Images (n, *spatial), foregrounds (n, *spatial), and why scans were left out.

    Raises:
        CohortError: no healthy scan, or none that can be prepared.
    """
    from normscan.preprocess import Preprocess

    healthy = [row for row in rows if row.label == 0]
    if not healthy:
        raise CohortError("this part of the cohort has no healthy scan. Choose another --split.")
    firsts = {row.subject: row for row in reversed(healthy)}
    chosen = [firsts[s] for s in dict.fromkeys(row.subject for row in healthy)]
    if len(chosen) < count:
        taken = {row.scan for row in chosen}
        chosen += [row for row in healthy if row.scan not in taken]
    chosen = [
        chosen[i] for i in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)
    ]
    plain = Preprocess(size=size, scaling="percentile", limit=1.0, colour="grey")
    dims = 2 if detector is None else detector.arguments["dims"]
    images, foregrounds, failures = [], [], []
    for row in track(chosen):
        try:
            scan = row.load()
            foreground = row.load_foreground(scan)
            if detector is None:
                prepared = plain(scan, dims, foreground)
            else:
                prepared = detector.preparation().of(scan, foreground)
        except (NormscanError, OSError) as error:
            failures.append(f"{row.scan}: {about_files(str(error), row.called())}")
            continue
        image, inside = prepared.image.mean(axis=0), prepared.foreground
        if image.ndim > dims:
            best = int(inside.sum(axis=(0, 1)).argmax())
            image, inside = image[..., best], inside[..., best]
        images.append(image)
        foregrounds.append(inside)
    if not images:
        raise CohortError(f"no healthy scan could be prepared: {failures[0]}")
    return np.stack(images).astype(np.float64), np.stack(foregrounds), failures


def restoring(detector: Detector) -> Restore:
    """Return the restoration of a detector's method on its working grid, for many images.

    Raises:
        ArgumentError: the detector isn't fitted, sees several channels, or restores nothing.
    """
    import torch

    from normscan.methods.base import Batch
    from normscan.rng import Rng, derive_seed

    method = detector.method
    if method is None or len(detector.channels) != 1:
        raise ArgumentError("the experiments need a fitted detector of one channel.")
    if method.context or any(use.prediction == "needed" for use in method.uses.values()):
        raise ArgumentError("the experiments show single images; this method needs more to see.")
    method.eval()
    device = next((p.device for p in method.parameters()), torch.device("cpu"))
    seed = derive_seed(detector.seed, "predict", 0)

    def restore(images: np.ndarray, foregrounds: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            batch = Batch(
                torch.from_numpy(np.ascontiguousarray(some)).float()[:, None],
                torch.from_numpy(np.array(foregrounds[start : start + BATCH]))[:, None],
                Rng([seed] * len(some)),
                torch.full((len(some),), 0.5),
            ).to(device)
            with torch.set_grad_enabled(method.needs_grad):
                made = method.maps(batch).reconstruction
            if made is None:
                raise ArgumentError(
                    f"the method '{detector.card.id}' gives no restoration, so it has no residual."
                )
            parts.append(made[:, 0].detach().double().cpu().numpy())
        return np.concatenate(parts)

    return restore
