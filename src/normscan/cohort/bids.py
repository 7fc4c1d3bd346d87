"""A BIDS data set as a cohort."""

from __future__ import annotations

import os
from collections.abc import Sequence

from normscan.bids.labels import Rule
from normscan.bids.masks import Filters
from normscan.bids.read import bids_table
from normscan.cohort.cohort import Cohort


def read_bids(
    root: str | os.PathLike[str],
    suffix: str | Sequence[str] | None = None,
    filters: Filters | None = None,
    derivatives: str | os.PathLike[str] | None = None,
    space: str | None = None,
    label: Rule = None,
    masks: Filters | None = None,
    seed: int = 0,
    fractions: Sequence[float] = (0.7, 0.1, 0.2),
) -> Cohort:
    """Read a BIDS data set as a cohort; ``normscan.bids.bids_table`` says what is taken.

    Args:
        root: folder with ``dataset_description.json``, raw or derived.
        suffix: of the images, and like the arguments up to ``masks`` that of ``bids_table``.
        filters: values that entities must have.
        derivatives: where the images lie.
        space: of the images.
        label: who is healthy.
        masks: filters of the lesion masks.
        seed: of the split.
        fractions: healthy subjects for train, val and test.

    Returns:
        The cohort; its ``notes`` say what was taken and what was left out.

    Raises:
        CohortError: as ``bids_table``.
        ArgumentError: as ``bids_table``.

    Example:
        >>> cohort = read_bids("ds000001", ("T1w", "FLAIR"), label="group:hc=0,*=1")
        ... # doctest: +SKIP
    """
    table, notes = bids_table(root, suffix, filters, derivatives, space, label, masks)
    cohort = Cohort.from_table(table, root, seed, fractions)
    cohort.notes = [*notes, *cohort.notes]
    return cohort
