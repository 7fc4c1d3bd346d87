"""GDCM in a process of its own: where it meets a damaged image it may end the process it runs in."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np

SECONDS = 60.0  # after which a frame is given up
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_LOCK = threading.Lock()
_running: tuple[int, subprocess.Popen[bytes]] | None = None


def decode(capsule: bytes, syntax: str, options: dict[str, Any]) -> tuple[np.ndarray, str]:
    """Decode one encapsulated frame.

    Args:
        capsule: the frame, as ``pydicom.encaps.encapsulate`` gives it.
        syntax: transfer syntax UID.
        options: of pydicom's decoder.

    Returns:
        The pixels and their photometric interpretation.

    Raises:
        RuntimeError: it can't be decoded, took too long, or ended the process.
    """
    question = json.dumps({"syntax": str(syntax), "options": options}, default=str).encode()
    with _LOCK:
        process = _process()
        assert process.stdin is not None and process.stdout is not None
        alarm = threading.Timer(SECONDS, process.kill)
        alarm.start()
        try:
            for block in (question, capsule):
                _send(process.stdin, block)
            told = json.loads(_receive(process.stdout))
            data = _receive(process.stdout)
        except (OSError, EOFError) as error:
            process.kill()
            process.wait()
            raise RuntimeError("the decoder ended or took too long") from error
        finally:
            alarm.cancel()
    if "shape" not in told:
        raise RuntimeError("the decoder refused the frame")
    array = np.frombuffer(bytearray(data), told["dtype"]).reshape(told["shape"])
    return array, told["photometric"]


def _process() -> subprocess.Popen[bytes]:
    """Return the worker of this very process; a fork starts its own."""
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "normscan.io.dicom.guarded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        _running = (os.getpid(), process)
    return _running[1]


def _send(pipe: IO[bytes], block: bytes) -> None:
    pipe.write(struct.pack("<Q", len(block)) + block)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (size,) = struct.unpack("<Q", head)
    block = pipe.read(size)
    if len(block) < size:
        raise EOFError
    return block


def _extended(capsule: bytes) -> np.ndarray:
    """Decode a JPEG of 12 bits, which pydicom lets no plugin of its own do."""
    import imagecodecs
    from pydicom.encaps import generate_frames

    frame = next(generate_frames(capsule, number_of_frames=1))
    return np.asarray(imagecodecs.jpeg8_decode(frame))


def _serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Decode frames until the other side closes."""
    from pydicom.pixels.decoders.base import get_decoder

    while True:
        try:
            asked, capsule = json.loads(_receive(questions)), _receive(questions)
        except EOFError:
            return
        told: dict[str, Any] = {}
        data = b""
        try:
            if asked["syntax"] == JPEG_EXTENDED and asked["options"].get("bits_stored", 8) > 8:
                array, photometric = (
                    _extended(capsule),
                    asked["options"]["photometric_interpretation"],
                )
            else:
                array, properties = get_decoder(asked["syntax"]).as_array(
                    capsule, index=0, decoding_plugin="gdcm", **asked["options"]
                )
                photometric = str(properties["photometric_interpretation"])
            told = {"shape": array.shape, "dtype": array.dtype.str, "photometric": photometric}
            data = np.ascontiguousarray(array).tobytes()
        except Exception:  # the question is answered with no shape
            told = {}
        _send(answers, json.dumps(told).encode())
        _send(answers, data)


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what GDCM prints is no answer
    _serve(sys.stdin.buffer, replies)
