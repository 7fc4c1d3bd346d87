"""Licences of everything that normscan needs, with its extras, as far as it is installed.

``python docs/licences.py`` prints a table, from the packages' own metadata and without the network. It
ends with 1 where a licence forbids commercial use or is the AGPL, and names what states none. With
``--sbom FILE`` it also writes a software bill of materials (CycloneDX 1.5).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

REFUSED = re.compile(r"AGPL|Affero|non-?commercial|\bNC\b|research only", re.IGNORECASE)
LONGEST = 60


def needed(name: str, known: dict[str, Distribution]) -> Iterator[str]:
    """Yield the names of what a package needs with all its extras, itself first."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in known:
        return
    try:
        known[key] = found = distribution(name)
    except PackageNotFoundError:
        yield key
        return
    own = found.metadata.get_all("Provides-Extra") or [] if key == "normscan" else []
    for text in found.requires or []:
        wanted = Requirement(text)
        extras = [{"extra": extra} for extra in ["", *own]]
        if wanted.marker is None or any(wanted.marker.evaluate(extra) for extra in extras):
            yield from needed(wanted.name, known)


def licence(found: Distribution) -> str:
    """Return what a package says of its licence: the expression, the classifiers, or the text's start."""
    told = found.metadata
    classes = [
        c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if "License ::" in c
    ]
    text = told.get("License-Expression") or "; ".join(classes) or told.get("License") or ""
    return text.strip().partition("\n")[0][:LONGEST]


def refused(known: dict[str, Distribution]) -> list[str]:
    """Return the packages that nobody may use freely."""
    return [name for name, found in known.items() if REFUSED.search(licence(found))]


def sbom(known: dict[str, Distribution]) -> dict[str, Any]:
    """Return the packages as CycloneDX 1.5 has them."""
    own = known["normscan"]

    def component(name: str, found: Distribution) -> dict[str, Any]:
        told = licence(found)
        return {
            "type": "application" if name == "normscan" else "library",
            "bom-ref": f"pkg:pypi/{name}@{found.version}",
            "name": name,
            "version": found.version,
            "purl": f"pkg:pypi/{name}@{found.version}",
            **({"licenses": [{"license": {"name": told}}]} if told else {}),
        }

    others = [component(name, found) for name, found in sorted(known.items()) if found is not own]
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": component("normscan", own)},
        "components": others,
    }  # fmt: skip


def main() -> int:
    """Print the table, and write the bill of materials where that is asked for."""
    known: dict[str, Distribution] = {}
    missing = sorted(set(needed("normscan", known)))
    told = {name: (found.version, licence(found)) for name, found in sorted(known.items())}
    for name, (version, text) in told.items():
        print(f"| {name} | {version} | {text or 'states none'} |")
    bad = refused(known)
    if "--sbom" in sys.argv:
        place = Path(sys.argv[sys.argv.index("--sbom") + 1])
        place.write_text(json.dumps(sbom(known), indent=1) + "\n", encoding="utf-8")
    silent = [name for name, (_, text) in told.items() if not text]
    print(
        f"{len(told)} packages; not installed here: {', '.join(missing) or 'none'}", file=sys.stderr
    )
    print(f"state no licence: {', '.join(silent) or 'none'}", file=sys.stderr)
    print(f"refused: {', '.join(bad) or 'none'}", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
