"""Recipes of public data sets: from the layout as downloaded to a checked cohort table.

>>> from normscan import datasets
>>> [recipe.id for recipe in datasets.list_datasets(modality="CT")]  # doctest: +SKIP
>>> cohort = datasets.prepare("cc359", "/data/cc359", out="cc359.csv")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.datasets.fetch import download as download
    from normscan.datasets.preparation import prepare as prepare
    from normscan.datasets.recipe import Recipe as Recipe
    from normscan.datasets.recipe import list_datasets as list_datasets
    from normscan.datasets.recipe import load as load

__all__ = ["Recipe", "download", "list_datasets", "load", "prepare"]

__getattr__ = lazily(
    __name__,
    {
        "Recipe": "recipe",
        "download": "fetch",
        "list_datasets": "recipe",
        "load": "recipe",
        "prepare": "preparation",
    },
)
