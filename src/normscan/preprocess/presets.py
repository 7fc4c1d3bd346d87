"""Preprocessing by modality: what the field usually does, as plain settings of ``Preprocess``.

| preset | steps | values | source |
|---|---|---|---|
| ``brain-mri`` | N4, brain, register to MNI152 | 98th percentile | UPD_study (Lagogiannis 2024) |
| ``brain-ct`` | table, brain in the skull, window 40/80 | 0..1 | Muschelli 2015; Radiopaedia |
| ``chest-xray`` | body, CLAHE 2.0 in 8 x 8 tiles | minmax | Zuiderveld 1994 |
| ``fundus`` | round field, CLAHE of luminance | file's range | Kaggle 2015 and its followers |
| ``oct`` | white wedges filled, median 3 | file's range | JPEGs of Kermany 2018 |
| ``histology`` | stain normalisation, tissue | file's range | Macenko 2009 |
| ``ultrasound`` | sector, text beside it removed | file's range | usual |
| ``dermoscopy`` | black corners, shades of grey p = 6 | file's range | Finlayson 2004; Barata 2015 |
| ``industrial`` | none, stretched to the grid | file's range | MVTec articles |

The size of the grid is the method's business (224 or 256 with ImageNet backbones, 128 with the
autoencoders of the unified comparisons), so no preset sets it.
"""

from __future__ import annotations

import copy
from typing import Any

from normscan.errors import ArgumentError, nearest

# A colour picture is scaled by its file's range, since a scaling per channel would change hues: the
# step ``full_range``.
_PICTURE = {"scaling": "none", "colour": "keep"}

PRESETS: dict[str, dict[str, Any]] = {
    "brain-mri": {
        "steps": ["reorient", "n4", "brain_extraction", {"register": {"to": "mni152"}}],
        "scaling": "percentile",
        "percentile": 98.0,
        "crop": "foreground",
        "fit": "pad",
    },
    "brain-ct": {
        "steps": [
            "reorient",
            "remove_table",
            {"brain_ct_mask": {"strip": True}},
            {"window": {"name": "brain"}},
        ],
        "scaling": "none",
        "crop": "foreground",
        "fit": "pad",
    },
    "chest-xray": {
        "steps": ["body_mask", {"clahe": {"clip_limit": 2.0, "tiles": 8}}],
        "scaling": "minmax",
        "colour": "grey",
        "crop": "foreground",
        "fit": "pad",
    },
    "fundus": {
        "steps": ["fundus_fov", {"clahe": {"on": "luminance"}}, "full_range"],
        **_PICTURE,
        "crop": "foreground",
        "fit": "pad",
    },
    "oct": {
        "steps": ["oct_borders", {"median": {"size": 3}}, "full_range"],
        "scaling": "none",
        "colour": "grey",
        "crop": "none",
        "fit": "stretch",
    },
    "histology": {
        "steps": ["macenko", "tissue_mask", "full_range"],
        **_PICTURE,
        "crop": "none",
        "fit": "stretch",
    },
    "ultrasound": {
        "steps": ["ultrasound_sector", "full_range"],
        "scaling": "none",
        "colour": "grey",
        "crop": "foreground",
        "fit": "pad",
    },
    "dermoscopy": {
        "steps": ["dermoscopy_fov", "shades_of_gray", "full_range"],
        **_PICTURE,
        "crop": "foreground",
        "fit": "pad",
    },
    "industrial": {
        "steps": ["full_range"],
        **_PICTURE,
        "crop": "none",
        "fit": "stretch",
        "foreground": "all",
    },
}


def preset(name: str) -> dict[str, Any]:
    """Return a copy of the settings of a preset.

    Args:
        name: one of ``PRESETS``.

    Raises:
        ArgumentError: no such preset; the nearest name is given.

    Example:
        >>> preset("industrial")["fit"]
        'stretch'
    """
    if name not in PRESETS:
        raise ArgumentError(
            f"there is no preprocessing preset '{name}'.{nearest(name, PRESETS)} "
            f"Known: {', '.join(PRESETS)}."
        )
    return copy.deepcopy(PRESETS[name])
