"""The commands that sign a detector, and say whether a signature holds."""

from __future__ import annotations

from pathlib import Path

from normscan.errors import OutputError


def sign(run: str, key: str, comment: str = "", make_key: bool = False) -> None:
    """Sign a detector, so that others see who made it and that nobody changed it.

    The digests of its files go into SHA256SUMS, and that file's signature beside it, in the format of
    minisign: `minisign -Vm SHA256SUMS -p FILE.pub` verifies it, too.

    Args:
        run: run folder of the detector, or an exported .onnx file.
        key: secret key of minisign's, without a password.
        comment: a line that is signed too, such as the release.
        make_key: make the key first, and its public half FILE.pub to be handed on.
    """
    from normscan.detector.signed import sign_detector
    from normscan.io.minisign import make_key as make
    from normscan.io.minisign import public_of

    place = Path(key)
    if make_key:
        make(place)
        print(f"{place}: a new key; keep it to yourself. {public_of(place)} is for others.")
    print(f"{sign_detector(Path(run), place, comment)}: signed.")


def verify(run: str, key: str) -> None:
    """Say whether a detector is the one that the owner of a key signed; 2 where it isn't.

    Args:
        run: run folder of the detector, or an exported .onnx file.
        key: public key, the .pub file, or a folder of them.
    """
    from normscan.detector.signed import trusted_keys, verify_detector

    if not Path(run).exists():
        raise OutputError(f"{run}: there is no such file or folder. Name a detector.")
    print(f"{run}: signed ({verify_detector(Path(run), trusted_keys([key]))}).")
