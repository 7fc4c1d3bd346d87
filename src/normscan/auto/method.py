"""The method ``auto`` as it is registered."""

from __future__ import annotations

from normscan.auto.fused import Fused
from normscan.auto.member import Member
from normscan.auto.plan import plan, presets_of, side_of
from normscan.errors import ArgumentError
from normscan.methods.base import Method
from normscan.registry import card, register

ALONE = "mean_image:laptop"  # stands where nobody has planned yet


@register(
    "auto",
    paper="this library",
    dims=(2, 3),
    plan=plan,
    preprocess={"crop": "foreground", "fit": "pad"},
    presets={"laptop": {}},
    tiny={
        "size": 32,
        "candidates": ("padim:tiny", "mean_image:tiny"),
        "effort": 1.0,
        "every": 4,
        "planted": 8,
    },
)
def auto(
    dims: int | None = 2,
    channels: int = 1,
    size: int = 128,
    candidates: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    minutes: float = 30.0,
    effort: float = 0.0,
    every: int = 0,
    judge_seed: int = 0,
    planted: int = 120,
) -> Method:
    """Several methods that configure themselves from healthy scans, as one detector.

    Cheap candidates that fit the cohort, the weights at hand and the time are trained. Part of the
    training subjects trains none of them: anomalies of ten kinds are planted into their scans, and
    what each candidate finds of them chooses its image score and its weight. The map is the weighted
    mean of the members' maps in healthy deviations, place by place where scans are aligned; the image
    score that of their scores as normal quantiles of healthy ones. What calibrates never chooses: with
    cross-calibration each fold's detector chooses anew, without that fold.

    Experimental: that it beats the median of its candidates has not been shown yet.

    No published system: the idea of a fingerprint and a plan is nnU-Net's (Isensee et al. 2021).

    Args:
        dims: spatial axes; 2 cuts volumes into slices.
        channels: of the scans.
        size: pixels along each axis of the common working grid; candidates that want fewer get
            their own smaller copy.
        candidates: methods to try, as ``padim`` or ``padim:laptop``; the usual ones where none is named.
        skip: methods that are not tried.
        minutes: for everything. What doesn't fit in isn't trained; the cheapest always is.
        effort: share of the training steps of each candidate; 0 lets the time decide.
        every: one of so many training subjects judges; 0 for 4, or 3 in a small cohort.
        judge_seed: of the planted anomalies.
        planted: number of them, about.
    """
    if every == 1 or every < 0 or not 0 <= effort <= 1 or not minutes > 0:
        raise ArgumentError(
            f"every is {every}, effort {effort}, minutes {minutes}: one of 2 subjects or more can "
            "judge, effort is a share, and there must be some time."
        )
    members = []
    for name in candidates or (ALONE,):
        id, entry, preset = name.partition(":")[0], card(name.partition(":")[0]), ""
        preset = presets_of(name)[0] if ":" not in name else name.partition(":")[2]
        values = entry.arguments(preset, dims=dims)
        chosen = entry.preset(preset)
        members.append(
            Member(
                f"{id}:{preset}",
                entry.create(**{**values, "channels": channels}),
                side_of(entry, preset, size),
                tuple(chosen.get("postprocess", entry.postprocess)),
                str(chosen.get("reduction", entry.reduction)),
            )
        )
    return Fused(members, every or 4, effort or 1.0, judge_seed, planted)
