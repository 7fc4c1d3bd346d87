"""The viewer's page in a browser: worklist, planes, threshold, verdicts, two tabs, no WebGL."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest
from tests.support import browser
from tests.support.viewer_runs import finding, write_run, write_table

from normscan.report import write_report
from normscan.viewer import folder

fastapi = pytest.importorskip("fastapi", reason="needs normscan[view]")
from normscan.viewer.app import NOT_BUILT, PAGE  # noqa: E402

why_not = browser.reason() or ("" if (PAGE / "index.html").is_file() else NOT_BUILT)
pytestmark = [
    pytest.mark.skipif(bool(why_not), reason=why_not or "-"),
    pytest.mark.xdist_group("browser"),
]
WIDE = {"width": 1280, "height": 800}
# The share of a canvas that is coloured, not grey: the map over the scan.
COLOURED = """() => {
  const nv = window.niivue; nv.drawScene();
  const gl = nv.gl, n = gl.drawingBufferWidth * gl.drawingBufferHeight;
  const p = new Uint8Array(4 * n);
  gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, p);
  let warm = 0;
  for (let i = 0; i < p.length; i += 4) if (p[i] > p[i + 2] + 30 && p[i] > 60) warm++;
  return warm / n;
}"""
SEEN = "() => performance.getEntriesByType('mark').find(m => m.name === 'worklist').startTime"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("browser") / "run", 6)


@pytest.fixture(scope="module")
def playwright():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def chrome(playwright, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with browser.chromium(playwright, profile, *browser.DRAWN, viewport=WIDE) as context:
        yield context


@pytest.fixture
def page(chrome):
    page = chrome.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda r: page.wrong.append(r.url) if outside(r.url) else None)
    yield page
    wrong = page.wrong
    page.close()
    assert wrong == []


def outside(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "blob:", "data:"))


def show(page, name):
    page.click(f"[data-scan={name}]")
    page.wait_for_selector(f"#stage[data-shown={name}]:not([aria-busy])")


def until(page, expression, arg=None):
    """Wait for an expression; playwright's own way needs ``eval``, which the page forbids."""
    for _ in range(300):
        if page.evaluate(expression, arg):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}")


def names(page):
    return page.eval_on_selector_all("[data-scan]", "all => all.map(e => e.dataset.scan)")


def test_a_reader_goes_through_a_run(run, chrome, page):
    with browser.viewer(run) as address:
        page.goto(address)
        page.wait_for_selector("[data-scan]")
        assert "token" not in page.url

        # The worklist: highest score first, sorted by name, filtered.
        scores = folder.Results(folder.locate(run)).rows()
        ranked = sorted(scores, key=lambda s: -scores[s]["score"])
        assert names(page) == ranked
        page.click(".head button >> nth=0")
        assert names(page) == sorted(scores)
        page.fill("#filter", "anomalous score>2")
        assert names(page) == [s for s in sorted(scores) if scores[s]["anomalous"]]
        page.fill("#filter", "")

        # Three planes with the map; the crosshair stands at the peak of the first component.
        show(page, "scan000")
        assert page.inner_text("#name") == "scan000"
        found = folder.Results(folder.locate(run)).finding("scan000")
        until(
            page,
            "peak => document.getElementById('place').textContent.includes(`map ${peak}`)",
            arg=f"{found['components'][0]['peak']:.4g}",
        )
        before = page.evaluate(COLOURED)
        assert before > 0.002
        page.keyboard.press("m")
        assert page.evaluate(COLOURED) < 0.2 * before
        page.keyboard.press("m")
        page.eval_on_selector(
            "#threshold", "e => { e.value = 1000; e.dispatchEvent(new Event('input')); }"
        )
        assert page.evaluate(COLOURED) < 0.5 * before

        # Below the threshold much is coloured; opacity by p leaves what is rare in healthy scans.
        page.eval_on_selector(
            "#threshold", "e => { e.value = 0; e.dispatchEvent(new Event('input')); }"
        )
        assert (all_ := page.evaluate(COLOURED)) > 3 * before
        page.keyboard.press("p")
        assert before / 2 < page.evaluate(COLOURED) < all_ / 2
        assert "p < 0.0001 among healthy pixels" in page.inner_text("#rarity")
        assert "p < 0.0001" in page.inner_text("#place")
        page.keyboard.press("p")
        assert page.evaluate(COLOURED) == pytest.approx(all_, rel=0.05)
        page.keyboard.press("r")
        page.wait_for_selector("#stage figure >> nth=1")

        # A verdict needs a reader, is saved with its note, and a later one doesn't replace it.
        page.keyboard.press("a")
        assert "Say who reads" in page.inner_text("#saved")
        page.fill("#reader", "ann")
        page.fill("#note", "seen <b>twice</b>")
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        page.wait_for_selector("#readings li")
        assert "seen <b>twice</b>" in page.inner_text("#readings")
        page.keyboard.press("d")
        page.wait_for_selector("#readings li >> nth=1")
        assert page.inner_text("[data-scan=scan000] .said") == "wrong"

        # A second tab sees it, and its own verdicts come here.
        other = chrome.new_page()
        other.goto(address.partition("?")[0] + "#scan=scan001")
        other.wait_for_selector("#stage[data-shown=scan001]:not([aria-busy])")
        assert other.inner_text("[data-scan=scan000] .said") == "wrong"
        other.keyboard.press("u")
        other.wait_for_selector("[data-scan=scan001] .said")
        other.close()
        page.bring_to_front()
        page.wait_for_selector("[data-scan=scan001] .said.unsure")

        # A reload comes back to the same scan with the same verdict.
        page.reload()
        page.wait_for_selector("#stage[data-shown=scan000]:not([aria-busy])")
        assert page.get_attribute("[data-verdict=disagree]", "aria-pressed") == "true"
        assert page.input_value("#reader") == "ann"

        # The keyboard alone goes on.
        page.keyboard.press("j")
        until(page, "document.getElementById('name').textContent !== 'scan000'")

        answer = page.request.get(address.partition("?")[0] + "api/verdicts.csv")
        rows = list(csv.DictReader(io.StringIO(answer.text())))
        said = [(r["scan"], r["verdict"], r["stands"]) for r in rows]
        assert said == [
            ("scan000", "agree", "False"), ("scan000", "disagree", "True"),
            ("scan001", "unsure", "True"),
        ]  # fmt: skip
        page.click("#agreement")
        page.wait_for_selector("#dialog-body table")
        assert "ann and detector" in page.inner_text("#dialog-body")


def test_a_long_worklist_keeps_few_rows_in_the_page(tmp_path, page):
    run = write_table(tmp_path / "run", 2000)
    with browser.viewer(run) as address:
        page.goto(address)
        page.wait_for_selector("[data-scan]")
        assert page.inner_text("#count").startswith("2000 scans")
        assert page.evaluate(SEEN) > 0
        assert len(names(page)) < 80
        first = names(page)[0]
        page.eval_on_selector("#table", "e => { e.scrollTop = e.scrollHeight; }")
        until(page, f"!document.querySelector('[data-scan={first}]')")
        assert len(names(page)) < 80
        page.fill("#filter", "scan1999")
        assert names(page) == ["scan1999"]
        page.click("[data-scan=scan1999]")
        page.wait_for_selector("#problems p")
        assert "no map" in page.inner_text("#problems")


def test_pictures_without_webgl_on_a_narrow_screen(playwright, tmp_path):
    run = write_run(tmp_path / "run", 1)
    narrow = {"width": 390, "height": 844}
    with (
        browser.viewer(run / "predictions" / "scan000_finding.json") as address,
        browser.chromium(
            playwright, tmp_path / "profile", "--disable-3d-apis", viewport=narrow
        ) as context,
    ):
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#stage[data-shown=scan000]")
        assert "no WebGL" in page.inner_text("#problems")
        until(
            page,
            "[...document.images].length === 3 && [...document.images].every(i => i.naturalWidth)",
        )
        before = page.get_attribute("#stage img", "src")
        page.keyboard.press("]")
        assert page.get_attribute("#stage img", "src") != before
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_report_fits_a_telephone_and_a4(playwright, tmp_path):
    path = tmp_path / "report.html"
    scans = pd.DataFrame(
        {"scan": list("abcd"), "subject": list("abcd"), "label": [0, 0, 1, 1],
         "score": [1.0, 2.0, 2.5, 3.0], "p_value": 0.1, "anomalous": [False, False, True, True]}
    )  # fmt: skip
    one = finding(3)
    picture = one.picture(one.map > 1.2, 1, "a" * 60)
    results = {
        "method": {"id": "dae"}, "metrics": {},
        "decision": {"threshold": 2.2, "open": False, "fpr_wanted": 0.05}, "card": "x " * 200,
    }  # fmt: skip
    write_report(
        path, results=results, scans=scans, pictures={"Most anomalous scans": [picture] * 3},
        pixel_threshold=1.2,
    )  # fmt: skip
    narrow = {"width": 390, "height": 844}
    with browser.chromium(playwright, tmp_path / "profile", viewport=narrow) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        unnamed = "img:not([alt]), svg:not([aria-label]):not([aria-hidden])"
        assert page.locator(unnamed).count() == 0
        printed = page.pdf(prefer_css_page_size=True)
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert sizes
    for width, height in sizes:
        assert float(width) == pytest.approx(595, abs=2)
        assert float(height) == pytest.approx(842, abs=2)
