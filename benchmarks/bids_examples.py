"""Every example of BIDS as a cohort: python benchmarks/bids_examples.py BIDS_EXAMPLES [--out FILE].

For each data set under the folder and each kind of image in it, the files of the cohort are compared
with those that a plain search finds, ``sub-*/[ses-*/]*/*_KIND.nii[.gz]``. Prints a table:

- equal: the same files
- fewer: a part of them, and the cohort's notes say why the others are left out
- refused: a clear error
- wrong: any other exception, files that the search doesn't find, or some left out without a word
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from normscan.cohort import read_bids
from normscan.errors import NormscanError

KINDS = ("T1w", "T2w", "FLAIR", "PDw", "T2star", "inplaneT2", "bold", "dwi", "pet", "asl")
OUTCOMES = ("equal", "fewer", "refused", "wrong")


def found(root: Path, kind: str) -> set[Path]:
    """Files of a kind by a plain search."""
    folders = [*root.glob("sub-*/*"), *root.glob("sub-*/ses-*/*")]
    return {p for f in folders if f.is_dir() for p in f.glob(f"*_{kind}.nii*") if "sub-" in p.name}


def outcome(root: Path, kind: str, files: set[Path]) -> tuple[str, str]:
    """What becomes of the files, and why."""
    try:
        cohort = read_bids(root, suffix=kind)
    except NormscanError as error:
        return "refused", str(error)
    except Exception as error:  # what a reader must never raise
        return "wrong", repr(error)
    taken = {Path(str(path).partition("#")[0]) for row in cohort for path in row.paths}
    if not taken <= files:
        return "wrong", f"{len(taken - files)} files that the search doesn't find"
    if taken == files:
        return "equal", ""
    return ("fewer" if cohort.notes else "wrong"), " ".join(cohort.notes)


def main() -> None:
    """Go through all data sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for description in sorted(options.folder.glob("*/dataset_description.json")):
        root = description.parent
        for kind in KINDS:
            if files := found(root, kind):
                what, why = outcome(root, kind, files)
                counts[kind][what] += 1
                if what != "equal":
                    print(f"{root.name} {kind}: {what}: {why[:300]}", file=sys.stderr)
    lines = [f"| image | {' | '.join(OUTCOMES)} |", "|" + "---|" * (1 + len(OUTCOMES))]
    lines += [
        f"| {kind} | {' | '.join(str(count[o]) for o in OUTCOMES)} |"
        for kind, count in counts.items()
        if count
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
