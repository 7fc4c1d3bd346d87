"""What normscan needs may be used freely, is pinned, and stands in the bill of materials."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import Distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
L = runpy.run_path(str(ROOT / "docs" / "licences.py"))


@pytest.fixture(scope="module")
def known():
    found: dict[str, Distribution] = {}
    list(L["needed"]("normscan", found))
    return found


def test_no_dependency_forbids_a_use(known):
    assert len(known) > 100 and {"torch", "pydicom", "cryptography"} <= set(known)
    assert L["refused"](known) == []


class Told(Distribution):
    def __init__(self, text):
        self.text = text

    def read_text(self, filename):
        return (
            f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{self.text}\n"
            if "METADATA" in filename
            else None
        )

    def locate_file(self, path):
        return Path(path)


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("License-Expression: AGPL-3.0-or-later", False),
        ("Classifier: License :: OSI Approved :: GNU Affero General Public License v3", False),
        ("License: CC-BY-NC-4.0", False),
        ("License: PolyForm Noncommercial 1.0", False),
        ("License-Expression: Apache-2.0", True),
        ("License: BSD-3-Clause", True),
        ("", True),
    ],
)
def test_which_licences_are_refused(text, free):
    assert (L["refused"]({"x": Told(text)}) == []) == free


def test_the_bill_names_each_package_once(known):
    made = L["sbom"](known)
    refs = [c["purl"] for c in made["components"]]
    assert len(set(refs)) == len(refs) == len(known) - 1
    assert made["metadata"]["component"]["name"] == "normscan"
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@\S+", ref) for ref in refs)


def test_what_is_locked_is_what_is_pinned():
    """The same versions, each with a hash; pip refuses the file if one lacks it."""
    pins = re.findall(r"^([\w.-]+==\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if not (ROOT / "requirements.lock").is_file():
        pytest.skip("requirements.lock isn't written: make lock")
    text = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"^([\w.-]+==\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert locked == [pin for pin in pins if pin.split("==")[0] not in ("torch", "torchvision")]
