"""Text that is burnt into a picture: rows of letters near its borders, where scanners write names.

It tells that there may be text, not what it says, and it reads nothing. See ``text_rows`` for what it
can't see.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LETTERS = 5  # of a row, at least
CONTRAST = 0.3  # of the picture's range, between a stroke and what is around it
BORDER = 0.3  # of the picture's sides, in which a row lies
_STROKE = 9  # pixels; what is wider is no stroke
_LOW, _HIGH = 5, 48  # pixels of a letter's height
_SMALLEST = 64  # pixels of a picture's sides


def text_rows(picture: np.ndarray) -> int:
    """Return how many rows of bright letters lie near the borders of a picture.

    Letters are strokes up to 9 pixels wide and 5 to 48 high, at least five of like height in a row and
    not all of one shape, brighter than a flat ground. It can't see dark text on bright ground, text in
    the middle of the picture, fewer letters (``R``, initials), handwriting, slanted or upright text,
    letters that touch each other or the anatomy, and text in a picture that was shrunk until letters
    are lower than 5 pixels.

    Args:
        picture: (H, W), or (H, W, colours).

    Returns:
        Number of rows; 0 for pictures of fewer than 64 pixels.
    """
    grey = np.asarray(picture, np.float32)
    grey = grey.max(axis=-1) if grey.ndim == 3 else grey
    low, high = float(grey.min()), float(grey.max())
    if min(grey.shape) < _SMALLEST or not high > low:
        return 0
    grey = (grey - low) / (high - low)
    strokes = grey - ndimage.grey_opening(grey, (_STROKE, _STROKE)) > CONTRAST
    found, _ = ndimage.label(strokes, np.ones((3, 3)))
    boxes: list[tuple[int, ...]] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(found), 1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if _LOW <= height <= _HIGH and width <= 1.6 * height:
            ink = int((found[rows, columns] == number).sum())
            if ink / (height * width) >= 0.1 and width >= 2:
                boxes.append((rows.start, rows.stop, columns.start, columns.stop, ink))
    return sum(_is_text(row, grey, strokes) for row in _rows(boxes))


def _rows(boxes: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Join boxes of like height that follow each other from left to right."""
    rows: list[list[tuple[int, ...]]] = []
    for box in sorted(boxes, key=lambda b: b[2]):
        height = box[1] - box[0]
        best = None
        for row in rows:
            last = row[-1]
            tall = last[1] - last[0]
            gap = box[2] - last[3]
            level = abs(box[1] - last[1]) <= 0.2 * max(tall, height)
            if level and -1 <= gap <= 1.5 * max(tall, height) and 0.6 <= height / tall <= 1.6:
                best = row if best is None or row[-1][3] > best[-1][3] else best
        if best is None:
            rows.append([box])
        else:
            best.append(box)
    return [row for row in rows if len(row) >= LETTERS]


def _is_text(row: list[tuple[int, ...]], grey: np.ndarray, strokes: np.ndarray) -> bool:
    """Whether a row is written: on flat ground, in several shapes, near a border."""
    top, bottom = min(b[0] for b in row), max(b[1] for b in row)
    left, right = row[0][2], max(b[3] for b in row)
    middle = ((top + bottom) / 2 / grey.shape[0], (left + right) / 2 / grey.shape[1])
    if not any(m < BORDER or m > 1 - BORDER for m in middle):
        return False
    shapes = {(b[1] - b[0], b[3] - b[2], b[4]) for b in row}
    if len(shapes) < min(4, len(row)):  # ticks of a scale are alike
        return False
    part = grey[top:bottom, left:right]
    ground = ~ndimage.binary_dilation(strokes[top:bottom, left:right])
    return bool(ground.any()) and float(part[ground].std()) < 0.08
