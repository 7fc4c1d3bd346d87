"""Ultrasound loops stored as luminance and colour differences: python benchmarks/ultrasound.py.

pydicom turns every pixel of a YBR_FULL frame through a matrix; the reader here only those in the
rectangle around the coloured ones. Both decode the same loops in turn (speckle, with and without a
box of colour Doppler, and colour all over), and each frame must come out with equal pixels. Writes
``benchmarks/results/ultrasound.md``.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

OUT = Path(__file__).parent / "results" / "ultrasound.md"
SHAPE = (480, 640)


def loop(kind: str, frames: int) -> np.ndarray:
    """(frames, 480, 640, 3) uint8 RGB of speckle that brightens."""
    rng = np.random.default_rng(0)
    speckle = rng.normal(90, 40, (*SHAPE, 1))
    made = np.clip(
        np.repeat(speckle[None] + 3 * np.arange(frames)[:, None, None, None], 3, -1), 0, 255
    )
    if kind == "a box of Doppler":
        made[:, 100:250, 200:400] = rng.normal(128, 60, (frames, 150, 200, 3))
    elif kind == "colour all over":
        made += rng.normal(0, 30, made.shape)
    return np.clip(made, 0, 255).astype(np.uint8)


def write(folder: Path, kind: str, frames: int, jpeg: bool) -> Path:
    """Write a loop as YBR_FULL, or as JPEG baseline."""
    import pydicom
    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.pixels.processing import convert_color_space
    from tests.support import dicom_files as D

    colours = loop(kind, frames)
    name = folder / f"{kind.replace(' ', '_')}_{jpeg}.dcm"
    if not jpeg:
        return D.write_image(
            name, convert_color_space(colours, "RGB", "YBR_FULL"), "US", "YBR_FULL"
        )
    data = pydicom.dcmread(D.write_image(name, colours, "US", "RGB"))
    packed = []
    for frame in colours:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=90, subsampling="4:2:2")
        packed.append(buffer.getvalue())
    data.PixelData, data["PixelData"].VR = encapsulate(packed), "OB"
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.save_as(name)
    return name


def timed(path: Path, frames: int, rounds: int) -> tuple[float, float, int]:
    """Return ms a frame of pydicom and of the reader, and how many values differ."""
    from pydicom.pixels.decoders.base import get_decoder

    from normscan.io.dicom import find_series
    from normscan.io.dicom.pixels import Pixels
    from normscan.io.dicom.source import find_sources, read_whole

    (info,) = find_series(path)
    data = read_whole(find_sources(path)[0])
    decoder, pixels = (
        get_decoder(data.file_meta.TransferSyntaxUID),
        Pixels(data, info.planes[0].file),
    )
    plugin = "pillow" if data.file_meta.TransferSyntaxUID.is_encapsulated else ""
    theirs, ours, different = [], [], 0
    for _ in range(rounds):
        for k in range(frames):
            began = time.perf_counter()
            reference, _ = decoder.as_array(data, index=k, raw=False, decoding_plugin=plugin)
            reference = reference.astype(np.float32)
            between = time.perf_counter()
            found = pixels.frame(k).values
            theirs.append(between - began)
            ours.append(time.perf_counter() - between)
            different += int((found != reference).sum())
    return 1e3 * float(np.median(theirs)), 1e3 * float(np.median(ours)), different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import pydicom

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for jpeg in (False, True):
            for kind in ("grey", "a box of Doppler", "colour all over"):
                path = write(Path(folder), kind, args.frames, jpeg)
                theirs, ours, different = timed(path, args.frames, args.rounds)
                stored = "JPEG baseline 4:2:2" if jpeg else "uncompressed"
                rows.append(f"| {stored} | {kind} | {theirs:.1f} | {ours:.1f} | {different} |")
    lines = [
        "# Ultrasound loops in YBR_FULL", "",
        f"`python benchmarks/ultrasound.py --frames {args.frames} --rounds {args.rounds}`, frames of "
        f"640 x 480, pydicom {pydicom.__version__}, {os.cpu_count()} cores, {platform.system()}, other "
        "work beside it. pydicom decodes and converts a frame with its own conversion; the reader "
        "decodes the same and converts the rectangle around the coloured pixels, and its time holds "
        "its checks of the file too. Median of all frames, both in turn.", "",
        "| stored | colours | pydicom, ms a frame | the reader, ms a frame | values that differ |",
        "| --- | --- | --- | --- | --- |", *rows, "",
    ]  # fmt: skip
    OUT.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
