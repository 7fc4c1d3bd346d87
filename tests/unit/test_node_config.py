"""node.toml: read, refused in one line, without repeating what may be secret."""

from __future__ import annotations

import pytest

from normscan.errors import ArgumentError
from normscan.io.dicom import SeriesInfo
from normscan.node.config import Config, Rule, seconds
from normscan.node.rules import Facts, fitting

GOOD = """
folder = "state"
retention = "2d"
[dicom]
callers = ["CT1"]
[[rules]]
name = "heads"
detector = "runs/a"
"""


def read(tmp_path, text):
    (tmp_path / "node.toml").write_text(text)
    return Config.read(tmp_path / "node.toml")


def test_paths_begin_at_the_file_and_times_have_units(tmp_path):
    config = read(tmp_path, GOOD)
    assert config.folder == tmp_path / "state" and config.rules[0].detector == tmp_path / "runs/a"
    assert config.retention == 2 * 86400 and seconds("90min") == seconds(5400) == 5400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("folder", "foldr"), "foldr: Extra inputs"),
        (('["CT1"]', "[]"), "dicom.callers: List should have at least 1"),
        (('["CT1"]', '["SEVENTEEN LETTERS"]'), "an AE title has 1 to 16"),
        (('"2d"', '"2 moons"'), "is no time"),
        (('name = "heads"', 'name = "heads"\ndescription = "("'), "no regular expression"),
        (("folder", "= folder"), "is no TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, change, said):
    with pytest.raises(ArgumentError, match="node.toml") as caught:
        read(tmp_path, GOOD.replace(*change))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="No such file"):
        Config.read(tmp_path / "node.toml")


HEAD = Facts("MR", "AX T2 FLAIR\nbrain", "HEAD")


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({}, True),
        ({"modality": ["mr", "CT"]}, True),
        ({"modality": ["CT"]}, False),
        ({"description": "flair"}, True),
        ({"description": "^flair"}, False),
        ({"description": "flair", "without": "brain"}, False),
        ({"body_part": ["BRAIN", "head"]}, True),
        ({"body_part": ["KNEE"]}, False),
    ],
)
def test_rules(rule, fits):
    given = Rule(name="r", detector="x", **rule)
    assert fitting([given], HEAD) == ([given] if fits else [])


def test_the_scanner_is_a_hash(tmp_path):
    from tests.support import node as N

    N.series(tmp_path, "s", StationName="GEHEIM")
    from normscan.io.dicom import find_series

    (info,) = find_series(tmp_path / "s")
    assert isinstance(info, SeriesInfo)
    facts = Facts.of(info)
    assert (facts.modality, facts.body_part) == ("MR", "HEAD") and "t1 axial" in facts.description
    assert len(facts.scanner) == 8 and int(facts.scanner, 16) >= 0
