"""The page: sound HTML, nothing from outside, hostile names harmless, missing parts no problem."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from normscan.errors import ArgumentError, OutputError
from normscan.report import Picture, write_report
from normscan.report.charts import pr_chart, roc_chart, score_histogram
from normscan.report.summary import day, number, p_value, percent

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
HOSTILE = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Checks that tags are balanced and collects addresses, identifiers and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.identities: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.identities.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def metric(value: float | None, **more: object) -> dict:
    given = {"value": value, "low": 0.5, "high": 0.9, "n": 8, "oracle": False, "title": "AUROC"}
    return {**given, "description": "", **more}


def table(healthy: int = 6, anomalous: int = 6, validation: int = 8) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    label = np.r_[np.zeros(healthy), np.ones(anomalous), np.zeros(validation)]
    score = label + generator.normal(size=label.size)
    names = [f"scan-{i}" for i in range(label.size)]
    return pd.DataFrame(
        {
            "scan": names,
            "subject": names,
            "label": label,
            "score": score,
            "p_value": 0.1,
            "anomalous": score > 0.9,
            "split": ["test"] * (healthy + anomalous) + ["validation"] * validation,
        }
    )


def picture(title: str = "scan-1", **more: object) -> Picture:
    generator = np.random.default_rng(1)
    mask = np.zeros((20, 24), bool)
    mask[5:9, 6:12] = True
    fields = {
        "caption": "",
        "image": generator.random((1, 20, 24)),
        "reconstruction": generator.random((1, 20, 24)),
        "map": generator.random((20, 24)) + mask,
        "mask": mask,
        "score": 1.0,
        "p_value": 0.01,
        "label": 1,
        "anomalous": True,
    }
    return Picture(title=title, **{**fields, **more})


MINIMAL: dict = {"method": {"id": "dae"}, "metrics": {}, "decision": {}}
FULL: dict = {
    "method": {"id": "dae", "family": "autoencoders", "paper": "K 2022", "regime": "healthy"},
    "command": "normscan evaluate run cohort.csv",
    "date": "2026-05-03T14:05:00",
    "cohort": {
        "name": "phantom",
        "counts": {"test": {"healthy": 6, "anomalous": 6, "subjects": 12}},
        "notes": ["a note"],
    },
    "metrics": {"auroc": metric(0.8), "f1": metric(0.7, oracle=True, title="F1-max")},
    "decision": {
        "threshold": 0.9,
        "fpr_wanted": 0.05,
        "fpr_expected": 0.1,
        "fpr_low": 0.01,
        "fpr_high": 0.3,
        "n_validation": 8,
        "warning": "Too few validation scans.",
        "flagged_anomalous": 5,
        "flagged_healthy": 1,
    },
    "pixels": {"region": "foreground", "threshold": 0.9, "fpr": 0.01, "scans_with_mask": 6},
    "baselines": {"intensity": {"auroc": metric(0.6), "other": metric(0.1, title="Other")}},
    "groups": {"kind": [{"value": "stroke", "n": 3, "auroc": metric(0.7)}]},
    "failures": [{"scan": "scan-9", "reason": "The file ends early."}],
    "config": {"noise": 0.2, "path": Path("x")},
    "versions": {"torch": "2.9"},
    "seconds": {"predict_per_scan": 0.4},
}


def write(path: Path, results: dict = FULL, scans: pd.DataFrame | None = None, **more) -> str:
    given = {"pictures": {"worst misses": [picture()]}, "pixel_threshold": 0.9, **more}
    target = write_report(
        path / "r.html", results=results, scans=table() if scans is None else scans, **given
    )
    return target.read_text(encoding="utf-8")


def test_full_page_is_balanced_and_self_contained(tmp_path: Path) -> None:
    html = write(tmp_path)
    page = Page(html)
    assert "script" not in page.tags
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in page.addresses)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(page.identities) == len(set(page.identities))
    used = {a[1:] for a in page.addresses if a.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(page.identities)
    assert "#0102" not in html  # every stand-in colour became a variable
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_full_page_says_what_matters(tmp_path: Path) -> None:
    text = Page(write(tmp_path)).text
    expected = [
        "Of 6 anomalous scans, 5 were flagged (83%); of 6 healthy scans, 1 was flagged (17%).",
        "set on 8 healthy validation subjects: it is expected to flag 10.0% of healthy scans",
        "not the 5% that were wanted",
        "Not for diagnosis.",
        "Too few validation scans.",
        "95% interval 1.0% to 30.0%",
        "3 May 2026, 14:05",
        "The file ends early.",
        "By kind",
        "intensity",
        "normscan evaluate run cohort.csv",
        "operating point",
    ]
    assert [e for e in expected if e not in text] == []
    assert text.index("Deployable") < text.index("AUROC") < text.index("Oracle")
    assert text.index("Oracle") < text.index("F1-max")


def test_hostile_strings_are_escaped(tmp_path: Path) -> None:
    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return HOSTILE if isinstance(value, str) else value

    results = poison(FULL)
    assert isinstance(results, dict)
    results["groups"] = {HOSTILE: results["groups"]["kind"]}
    results["versions"] = {HOSTILE: HOSTILE}
    pictures = {HOSTILE: [picture(HOSTILE, caption=HOSTILE)]}
    html = write(tmp_path, results, table().assign(scan=HOSTILE), pictures=pictures)
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) > 10


@pytest.mark.parametrize("key", sorted(set(FULL) - {"method", "metrics", "decision"}))
@pytest.mark.parametrize("absent", [True, False])
def test_copes_without_any_part(tmp_path: Path, key: str, absent: bool) -> None:
    results = {k: v for k, v in FULL.items() if k != key} | ({} if absent else {key: None})
    Page(write(tmp_path, results, pictures={}))


def test_copes_with_next_to_nothing(tmp_path: Path) -> None:
    bare = pd.DataFrame({"scan": [], "score": []})
    text = Page(write(tmp_path, MINIMAL, bare, pictures={}, pixel_threshold=None)).text
    assert "No test scan was scored." in text and "No metric was computed." in text


def test_copes_with_numbers_that_are_none(tmp_path: Path) -> None:
    nan = float("nan")
    metrics = {"a": metric(nan, low=nan, high=nan, n=None), "b": metric(None, low=None), "c": None}
    decision = dict.fromkeys(FULL["decision"]) | {"threshold": nan, "fpr_expected": nan}
    scans = table().assign(score=nan, label=nan)
    flat = picture(map=np.full((20, 24), nan), image=np.zeros((1, 20, 24)), score=nan, p_value=nan)
    html = write(
        tmp_path, {**FULL, "metrics": metrics, "decision": decision}, scans, pictures={"a": [flat]}
    )
    page = Page(html)
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert "Of 12 unlabelled scans" in page.text and "No scan has a score." in page.text


@pytest.mark.parametrize(("healthy", "anomalous"), [(6, 0), (0, 6), (1, 1)])
def test_copes_with_one_class(tmp_path: Path, healthy: int, anomalous: int) -> None:
    results = {**FULL, "decision": {"threshold": 0.9}}
    text = Page(write(tmp_path, results, table(healthy, anomalous, 0))).text
    assert ("There are no anomalous test scans" in text) == (anomalous == 0)
    assert ("There are no healthy test scans" in text) == (healthy == 0)
    assert ("need both healthy and anomalous" in text) == (not healthy or not anomalous)


def test_picture_rows_say_what_is_missing(tmp_path: Path) -> None:
    healthy = picture(label=0, mask=None, reconstruction=None)
    pictures = {"worst misses": [], "worst false alarms": [healthy, picture()]}
    text = Page(write(tmp_path, pictures=pictures)).text
    assert "There is none." in text
    assert "healthy, no lesion" in text and "no restoration" in text
    assert "no restoration" not in Page(write(tmp_path, pictures={"a": [healthy]})).text


def test_eighteen_pictures_stay_small(tmp_path: Path) -> None:
    disc = np.hypot(*np.mgrid[-120:120, -120:120]) < 90
    noise = np.random.default_rng(0).random((1, 240, 240)) * 0.1
    large = picture(
        image=disc * (0.7 + noise), reconstruction=disc * 0.7 + 0 * noise, map=noise[0], mask=disc
    )
    assert len(write(tmp_path, pictures={"a": [large] * 18}, pixel_threshold=0.2)) < 2e6


def test_same_input_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path) == write(tmp_path)


def test_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    before = (tmp_path / "r.html").read_text()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path, MINIMAL)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert (tmp_path / "r.html").read_text() == before


def test_missing_required_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="metrics, decision"):
        write(tmp_path, {"method": {"id": "dae"}})


def test_charts_need_their_data() -> None:
    none = np.empty(0)
    assert score_histogram(none, none) is None
    ones = np.ones(3, int)
    assert roc_chart(ones, np.arange(3.0), None) is None
    assert pr_chart(ones, np.arange(3.0), None) is None
    assert score_histogram(np.ones(1), none, none, threshold=1.0) is not None


def test_roc_label_is_the_auc() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.5, 0.9])
    drawing = roc_chart(labels, scores, scores > 0.55)
    assert drawing is not None and "AUROC 0.750" in drawing and "chance" in drawing


def test_numbers_as_a_reader_wants_them() -> None:
    given = (0.12345, 12.345, 22.98, -107.2, 1234.5, 2.5e7, 0.00001, 0, None, float("inf"))
    written = ["0.123", "12.3", "23.0", "-107", "1234", "2.5e+07", "1e-05", "0.000", "–", "–"]
    assert [number(x) for x in given] == written
    assert (percent(0.0512, 1), percent(None), p_value(0.0001)) == ("5.1%", "–", "< 0.001")
    assert (day("2026-05-03"), day("soon"), day(None)) == ("3 May 2026", "soon", "")
