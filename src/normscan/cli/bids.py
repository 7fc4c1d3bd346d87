"""The BIDS-App: ``normscan-bids bids_dir output_dir participant|group``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.bids.tables import read_json
from normscan.cli.main import fail
from normscan.cli.outlet import outlets
from normscan.errors import ArgumentError, CohortError, NormscanError, nearest, of_scan
from normscan.version import __version__

if TYPE_CHECKING:
    from normscan.cohort import Cohort
    from normscan.detector import Detector

NONE_WORKED = 1
EPILOG = """The participant level scores every scan with a fitted detector and writes its map,
segmentation, picture and finding; scans whose finding by the same detector is there are passed
over. The group level collects the findings in one table. Exit codes: 0 done, even if some scans
were left out (they are named on stderr); 1 no scan worked; 2 wrong input; 130 stopped by the
keyboard. Research use. Not for diagnosis."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a level; return its exit code."""
    options = build_parser().parse_args(argv)
    with outlets():
        return _main(options)


def _main(options: argparse.Namespace) -> int:
    try:
        return (_participant if options.analysis_level == "participant" else _group)(options)
    except NormscanError as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return fail("stopped. The same command goes on with the scans that are left.", 130)
    except OSError as error:
        return fail(f"{error.filename or 'normscan-bids'}: {error.strerror or error}.")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the BIDS-Apps convention."""
    parser = argparse.ArgumentParser(
        prog="normscan-bids",
        description="Anomaly maps of a BIDS data set, as BIDS derivatives.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("bids_dir", type=Path, help="root of the data set")
    add("output_dir", type=Path, help="folder for the derivatives")
    add("analysis_level", choices=("participant", "group"), help="scans, or the table of all")
    labels: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "LABEL"}
    add("--participant-label", "--participant_label", help="only these subjects", **labels)
    add("--session-label", "--session_label", help="only these sessions", **labels)
    add("--detector", "--run", metavar="FOLDER", help="run folder of a fitted detector")
    add("--suffix", nargs="+", help="images, one suffix a channel (default: the detector's)")
    add("--filter", nargs="+", default=[], metavar="KEY=VALUE",
        help="entities that the images must have: acq=mprage; an empty value: must not have")  # fmt: skip
    add("--derivatives", metavar="NAME", help="take the images from this folder of derivatives/")
    add("--space", help="space of the images")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--overwrite", action="store_true", help="score again what has a finding already")
    add("--skip-bids-validation", "--skip_bids_validator", action="store_true",
        help="don't ask for a sound dataset_description.json")  # fmt: skip
    add("-v", "--version", action="version", version=f"normscan-bids {__version__}")
    return parser


def _participant(options: argparse.Namespace) -> int:
    from normscan.bids.write import begin_dataset, is_done, write_finding
    from normscan.detector import load
    from normscan.detector.finding import Finding
    from normscan.progress import Progress

    if not options.detector:
        raise ArgumentError("the participant level needs --detector, the folder of a fitted one.")
    _check_dataset(options.bids_dir, options.skip_bids_validation)
    detector = load(options.detector, options.device)
    bar = Progress()
    rows = _rows(options, detector)
    for note in rows.notes:
        bar.say(note)
    begin_dataset(options.output_dir, options.bids_dir)
    made = str(detector.fingerprint)
    left = [
        options.overwrite or not is_done(options.output_dir, row, made)
        for row in bar.track(rows, "look for findings", len(rows))
    ]
    before, rows = len(rows) - sum(left), rows.select(left)
    if before:
        bar.say(f"{before} scans have a finding of this detector already.")
    failures = 0
    tracked = bar.track(rows, "predict", len(rows))
    for row, result in detector.predict_cohort(tracked, details=True):
        try:
            if not isinstance(result, Finding):
                raise result
            with of_scan(row.scan):
                write_finding(options.output_dir, options.bids_dir, row, result)
            for note in result.notes:
                print(f"{row.scan}: note: {note}", file=sys.stderr)
        except NormscanError as error:
            failures += 1
            print(f"{row.scan}: left out: {error}", file=sys.stderr)
    print(f"{len(rows) - failures} scans scored, {before} there before, {failures} left out.")
    print(f"results: {options.output_dir}")
    return NONE_WORKED if failures == len(rows) and not before else 0


def _group(options: argparse.Namespace) -> int:
    from normscan.bids.group import write_group

    table, bad = write_group(options.output_dir, options.participant_label)
    for line in bad:
        print(line, file=sys.stderr)
    print(f"table: {table}\npage:  {table.with_suffix('.md')}")
    return 0


def _check_dataset(root: Path, skipped: bool) -> None:
    """Refuse what is no BIDS data set; the official validator looks deeper."""
    path = root / "dataset_description.json"
    if not root.is_dir():
        raise CohortError(f"{root}: no such folder. Name the root of a BIDS data set.")
    if skipped:
        return
    mend = "Mend it, or go on with --skip-bids-validation."
    try:
        found = read_json(path)
    except OSError as error:
        raise CohortError(f"{path}: can't be read ({error.strerror}). {mend}") from error
    except ValueError as error:
        raise CohortError(f"{path}: is no JSON ({error}). {mend}") from error
    lacking = [k for k in ("Name", "BIDSVersion") if not isinstance(found, dict) or k not in found]
    if lacking:
        raise CohortError(f"{path}: lacks {' and '.join(lacking)}. {mend}")


def _rows(options: argparse.Namespace, detector: Detector) -> Cohort:
    """Return the scans that were asked for."""
    from normscan.bids.read import bids_table
    from normscan.cohort import Cohort

    filters: dict[str, str | None] = {}
    for part in options.filter:
        key, equals, value = part.partition("=")
        if not equals:
            raise ArgumentError(f"--filter {part}: write key=value, for example acq=mprage.")
        filters[key] = value or None
    root, where = options.bids_dir, (filters, options.derivatives, options.space)
    suffixes = _suffixes(detector, options.suffix, root, where)
    table, notes = bids_table(root, suffixes, *where, label=False)
    rows = Cohort(table, root, notes)
    keep = _asked(rows.table["subject"], options.participant_label, "sub-", root)
    if options.session_label:
        sessions = rows.table.get("session", [""] * len(rows))
        asked = _asked(sessions, options.session_label, "ses-", root)
        keep = [one and other for one, other in zip(keep, asked, strict=True)]
    if not any(keep):
        raise CohortError(f"{root}: none of these subjects has such a session.")
    return rows.select(keep)


def _suffixes(
    detector: Detector, given: list[str] | None, root: Path, where: tuple[Any, ...]
) -> list[str] | None:
    """Return the suffixes in the order of the detector's channels; None if they name none."""
    from normscan.bids.read import find_suffixes

    there = given or find_suffixes(root, *where)
    by_channel = {name.lower(): name for name in there}
    wanted = [by_channel.get(channel.lower(), "") for channel in detector.channels]
    return wanted if all(wanted) and len(wanted) >= len(given or ()) else given


def _asked(names: Iterable[str], wanted: list[str], prefix: str, root: Path) -> list[bool]:
    """Tell which of the names were asked for; all where nothing was.

    Raises:
        CohortError: a label that no scan has.
    """
    found = list(map(str, names))
    labels = [name if name.startswith(prefix) else prefix + name for name in wanted]
    for label in labels:
        if label not in found:
            raise CohortError(
                f"{root}: has no {label} with such an image.{nearest(label, sorted(set(found)))}"
            )
    return [not labels or name in labels for name in found]


if __name__ == "__main__":
    sys.exit(main())
