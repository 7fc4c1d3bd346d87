"""`normscan node`: what it says of a configuration, and the actions on its folder."""

from __future__ import annotations

import pytest

pytest.importorskip("pynetdicom", reason="needs normscan[serve]")
pytest.importorskip("highdicom", reason="needs normscan[serve]")

from tests.support import node as N

from normscan.cli.main import main
from normscan.node.config import Config
from normscan.node.process import alone
from normscan.node.store import Store


@pytest.fixture
def path(tmp_path):
    return N.write_config(tmp_path, tmp_path / "run")


def test_a_rule_without_its_detector_is_refused_at_once(path, capsys):
    assert main(["node", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert "rule 'heads'" in said and "is no run folder" in said


def test_a_missing_configuration_and_an_unknown_action(tmp_path, capsys):
    assert main(["node", "--config", str(tmp_path / "none.toml")]) == 2
    assert main(["node", "purg"]) == 2
    assert "Did you mean 'purge'" in capsys.readouterr().err


def test_status_purge_and_again(path, capsys):
    store = Store(Config.read(path))
    for outcome in ("done", "failed"):
        store.queue.arrive(outcome, "CT1", 10, quiet=0)
        store.queue.advance(store.queue.claim("score", "w"), "end", outcome=outcome)
    config = ["--config", str(path)]
    assert main(["node", "status", *config]) == 0
    assert capsys.readouterr().out.split() == ["done", "1", "failed", "1", "bytes", "20"]
    assert main(["node", "again", *config]) == 0
    assert main(["node", "purge", *config]) == 2
    assert main(["node", "purge", "--older", "0s", *config]) == 0
    assert store.queue.counts() == {"waiting": 1}


def test_two_nodes_never_share_a_folder(path, capsys):
    store = Store(Config.read(path))
    (path.parent / "run").mkdir()
    (path.parent / "run" / "detector.json").write_text("{}")
    with alone(store.folder):
        assert main(["node", "--config", str(path)]) == 2
    assert "another node works in this folder" in capsys.readouterr().err
