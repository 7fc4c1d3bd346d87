"""Makes the pictures of artificial anomalies: python docs/tasks.py writes docs/img/tasks_2d.png, _3d.png.

Every task on the same healthy slice and volume of the phantom, so that no real data are shown.
"""

from __future__ import annotations

from pathlib import Path

from normscan.diagnostics.gallery import draw_gallery

IMAGES = Path(__file__).parent / "img"

if __name__ == "__main__":
    for dims in (2, 3):
        draw_gallery(IMAGES / f"tasks_{dims}d.png", dims)
