"""Ours beside the numbers that released code gave, with equal weights and inputs."""

from __future__ import annotations

import pytest
import torch

from normscan.registry import load_all
from tests.golden.records import STATES, ours, read_all

RECORDS = read_all()
CHECKS = [
    pytest.param(id, check, id=f"{id}-{check.name}")
    for id, record in RECORDS.items()
    for check in record.check
]


@pytest.mark.parametrize(("id", "check"), CHECKS)
def test_ours_is_theirs(id, check):
    reached, theirs = ours(id, check), torch.tensor(check.values, dtype=torch.float64)
    scale = theirs.abs().max().clamp_min(1e-12)
    difference = float((reached - theirs).abs().max() / scale)
    assert difference <= check.relative, f"{difference:.2e} apart: {reached} against {theirs}"
    assert check.relative <= 1e-4 or check.reason, "say why it is wider"


@pytest.mark.parametrize("id", RECORDS)
def test_records_say_what_they_are(id):
    record = RECORDS[id]
    assert record.state in STATES
    ran = [c for c in record.check if c.source == "run"]
    if record.state in ("exact", "departs"):
        assert record.repository and len(record.commit) == 40 and record.files
        assert ran or record.note
    else:
        assert record.note, "say why nothing was run"
    assert bool(record.departs) == (record.state == "departs")


def test_a_method_without_a_preset_for_code_has_a_record():
    """No entry for ``code`` says nothing by itself: the record tells equal from unknown."""
    silent = {id for id, card in load_all().items() if not card.presets["code"]}
    assert silent <= set(RECORDS)
