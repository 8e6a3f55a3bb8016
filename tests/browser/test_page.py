"""The report's page in headless Chromium: nothing overflows, nothing is loaded, everything can be read and reached.

`make test-browser` installs Playwright, and Chromium where there is none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isoform.validators.report import formats as reports
from isoform.validators.report.records import Report
from tests.validators.report.sample_report import sample

pytestmark = pytest.mark.browser
SECTIONS = ["Summary", "Cases", "Layers", "Errors by size", "Wanted and got", "Divergence by position", "Time"]

# For every text that is shown: its contrast with what lies behind it, as WCAG 2 counts it.
CONTRAST = """() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => {
    const part = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map(v => part(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || !box.width || !box.height || element.className === 'skip') continue;
    const style = getComputedStyle(element);
    const front = parse(element.closest('svg') ? style.fill : style.color);
    const pair = [light(front), light(behind(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) poor.push([element.textContent.slice(0, 40), ratio]);
    if (parseFloat(style.fontSize) < 11.5) poor.push([element.textContent.slice(0, 40), style.fontSize]);
  }
  return poor;
}"""

# Of texts in charts: those that leave their picture, and pairs that lie upon each other.
CHARTS = """() => {
  const wrong = [];
  for (const svg of document.querySelectorAll('svg')) {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
    for (const [name, box] of boxes)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        wrong.push(name + ' leaves ' + svg.getAttribute('aria-label'));
    boxes.forEach(([name, a], n) => boxes.slice(n + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
        wrong.push(name + ' upon ' + other + ' in ' + svg.getAttribute('aria-label'));
    }));
  }
  return wrong;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser: Any, report: Report, folder: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """The page in a window so wide, and a list that fills with what goes wrong."""
    reports.save(report, "html", folder / "report.html")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
    page.goto((folder / "report.html").as_uri())
    return page, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("failing", [True, False])
def test_everything_fits_and_can_be_read(browser: Any, tmp_path: Path, width: int, scheme: str, failing: bool) -> None:
    page, wrong = opened(browser, sample(failing=failing), tmp_path, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert [text for text in page.locator("h2").all_inner_texts() if text in SECTIONS] == SECTIONS
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(CHARTS) == []
    assert wrong == []
    page.context.close()


def test_the_keyboard_reaches_links_details_and_wide_tables(browser: Any, tmp_path: Path) -> None:
    page, _ = opened(browser, sample(), tmp_path, 360, "light")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className + ' ' + document.activeElement.tagName"))
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outlined != "none" or reached[-1].endswith("BODY")
    assert reached[0] == "skip A"
    assert {"skip A", " A", "scroll DIV", " SUMMARY"} <= set(reached)
    page.context.close()


def test_an_empty_report_is_a_page_too(browser: Any, tmp_path: Path) -> None:
    page, wrong = opened(browser, Report(), tmp_path, 360, "light")
    assert "not the same" in page.title()
    assert page.evaluate(CONTRAST) == []
    assert wrong == []
    page.context.close()
