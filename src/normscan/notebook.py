"""How things look in a notebook: small pages with pictures, figures, volumes to turn round."""

from __future__ import annotations

import base64
import html as _html
import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from normscan.display import Plane, overlay_levels, overlay_table, painted, png_data_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 150
STYLE = "display:inline-block;margin:0 8px 4px 0;text-align:center;font-size:12px"


def page(
    title: str,
    facts: Mapping[str, Any],
    pictures: Iterable[tuple[Plane, tuple[float, float] | None, str]] = (),
    more: str = "",
) -> str:
    """Return HTML that tells what something is.

    Args:
        title: its kind and name.
        facts: what is known of it, by name.
        pictures: planes, the scale of their maps or None, and what stands below each.
        more: HTML behind it, such as a drawing.
    """
    rows = "".join(
        f"<tr><td style='text-align:left;color:#777'>{_html.escape(str(name))}</td>"
        f"<td style='text-align:left'>{_html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None and value != ""
    )
    shown = "".join(_figure(*one) for one in pictures)
    return (
        f"<div><strong>{_html.escape(title)}</strong>"
        f"<table style='margin:4px 0'>{rows}</table><div>{shown}</div>{more}</div>"
    )


def _figure(plane: Plane, scale: tuple[float, float] | None, below: str) -> str:
    uri = png_data_uri(painted(plane, SIDE, scale))
    said = _html.escape(below or plane.name or "picture")
    return f"<figure style='{STYLE}'><img src='{uri}' alt='{said}'><figcaption>{said}</figcaption></figure>"


@cache
def _drawing() -> type[Figure]:
    from matplotlib.figure import Figure

    class Drawing(Figure):
        """A figure that a notebook shows by itself, whichever backend matplotlib has."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    return Drawing


def drawing(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of that size in inches, which a notebook shows."""
    return _drawing()(figsize=(width, height), layout="constrained")


def draw(
    planes: Sequence[Plane],
    scale: tuple[float, float] | None = None,
    title: str = "",
    names: Sequence[str] = (),
    columns: int = 4,
) -> Any:
    """Return a figure of planes, with their maps and the colours' scale where there is one.

    Args:
        planes: to draw.
        scale: map values where the overlay begins and where it is brightest.
        title: above all.
        names: above each; the planes' own by default.
        columns: planes in a row at most.
    """
    wide = min(columns, len(planes))
    high = -(-len(planes) // wide)
    figure = drawing(3.1 * wide + (0.9 if scale else 0), 3.2 * high + 0.4)
    cells = figure.subplots(high, wide, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for number, (cell, plane) in enumerate(zip(cells, planes, strict=False)):
        rows, columns_mm = np.array(plane.image.shape[:2]) * plane.spacing
        where = (0, columns_mm, rows, 0)
        cell.imshow(plane.image, cmap="gray", vmin=0, vmax=255, extent=where)
        if scale is not None and plane.map is not None:
            cell.imshow(overlay_table()[overlay_levels(plane.map, scale)], extent=where)
        cell.set_title(names[number] if names else plane.name, fontsize=9)
        if plane.letters:
            top, left = plane.letters
            cell.text(0.5, 0.99, top, transform=cell.transAxes, ha="center", va="top", color="w")
            cell.text(0.01, 0.5, left, transform=cell.transAxes, va="center", color="w")
    if scale is not None:
        _colour_bar(figure, cells[: len(planes)], scale)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _colour_bar(figure: Figure, cells: Any, scale: tuple[float, float]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = ListedColormap(overlay_table()[:, :3] / 255.0)
    shown = ScalarMappable(Normalize(*scale), colours)
    figure.colorbar(shown, ax=list(cells), shrink=0.7, label="anomaly map")


def turned(
    volumes: Sequence[tuple[str, np.ndarray, tuple[float, float] | None]], affine: np.ndarray
) -> Any:
    """Return a widget with volumes over each other, in three planes and 3D; None without ipyniivue.

    Args:
        volumes: for each its name, values (X, Y, Z), and for a map the values where its colours
            begin and end.
        affine: (4, 4) index to RAS+ millimetres.
    """
    try:
        from ipyniivue import NiiVue, ShowRender, SliceType, Volume
    except ImportError:
        return None
    view = NiiVue(height=420, back_color=(0, 0, 0, 1), is_radiological_convention=True)
    view.load_volumes(
        [
            Volume(data=_nifti(values, affine), name=f"{name}.nii", **_coloured(scale))
            for name, values, scale in volumes
        ]
    )
    view.set_slice_type(SliceType.MULTIPLANAR)
    view.opts.multiplanar_show_render = ShowRender.ALWAYS
    return view


def _coloured(scale: tuple[float, float] | None) -> dict[str, Any]:
    if scale is None:
        return {"colormap": "gray", "colorbar_visible": False}
    return {"colormap": "inferno", "opacity": 0.7, "cal_min": scale[0], "cal_max": scale[1]}


def _nifti(values: np.ndarray, affine: np.ndarray) -> bytes:
    """Return values as NIfTI in 16 bits: a widget carries them in its state."""
    import nibabel

    known = np.nan_to_num(
        values, nan=float(np.nanmin(values)) if np.isfinite(values).any() else 0.0
    )
    image = nibabel.Nifti1Image(known.astype(np.float32), affine)
    image.set_data_dtype(np.uint16)
    return bytes(image.to_bytes())


def svg_image(svg: str, alt: str) -> str:
    """Return an SVG drawing as an image, so that its styles reach nothing else on the page."""
    address = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return f"<img src='{address}' alt='{_html.escape(alt)}' style='max-width:640px'>"
