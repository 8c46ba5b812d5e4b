"""The report in a real browser, at the width of a desk and of a telephone.

Needs Chromium and its driver, so it runs under ``CTM_TEST_SYSTEM=1`` only. Three reports are
looked at: a synthetic one, that of the smoke run, and the one under ``results/`` where there is
one; the screenshots are kept in ``report/`` beside each.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fixtures.results_factory import Results

from ctm_core.report.figures import write_figures
from ctm_core.report.page import write_report
from ctm_core.report.tables import write_tables

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTHS = {"desk": (1280, 900), "telephone": (390, 844)}
REAL = Path(__file__).resolve().parents[2] / "results"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.system("browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    from selenium import webdriver

    assert BROWSER and DRIVER, "install the packages chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    results = Results(root).default()
    small = Results(root, experiment="gaussian")
    small.evaluation("ctm", step=100, shift=5.0)
    small.evaluation("ctm", step=500)
    evaluations = results.evaluations + small.evaluations
    write_tables(evaluations, root)
    write_figures(evaluations, results.trainings, root / "figures")
    write_report(root, root / "report.html")
    return root / "report.html"


def reports() -> list[str]:
    """The synthetic report, that of the smoke run, and `make table`'s where it was made."""
    made = ["results"] if (REAL / "report.html").is_file() else []
    return ["synthetic", "smoke", *made]


@pytest.mark.parametrize("width", list(WIDTHS))
@pytest.mark.parametrize("which", reports())
def test_report_is_whole_at_every_width(
    browser: Chrome, request: pytest.FixtureRequest, which: str, width: str
) -> None:
    if which == "synthetic":
        report = request.getfixturevalue("synthetic")
    elif which == "smoke":
        report = request.getfixturevalue("finished").path / "results/report.html"
    else:
        report = REAL / "report.html"
    show(browser, report, width)
    screenshot(browser, report.parent / "report" / f"{width}.png")

    severe = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]  # type: ignore[no-untyped-call]
    assert severe == []
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= WIDTHS[width][0]
    images = browser.execute_script(
        "return Array.from(document.images, i => [i.alt, i.complete ? i.naturalWidth : 0])"
    )
    assert len(images) >= 6
    for alt, natural in images:
        assert natural > 0, alt
        assert len(alt) > 20
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(name => !name.startsWith('data:'))"
    )
    assert loaded == []
    clipped = browser.execute_script(
        """const edge = document.documentElement.clientWidth + 1;
        return Array.from(document.querySelectorAll('p, li, h1, h2, h3, dl'))
          .filter(e => e.getBoundingClientRect().right > edge).map(e => e.textContent);"""
    )
    assert clipped == []


def test_a_click_on_a_heading_sorts_and_a_second_one_turns_it_round(
    browser: Chrome, synthetic: Path
) -> None:
    show(browser, synthetic, "desk")
    column = """const t = document.querySelector('table.sortable');
        const heads = Array.from(t.tHead.rows[0].cells);
        const i = heads.findIndex(c => c.textContent.includes(arguments[0]));
        if (arguments[1]) heads[i].querySelector('button').click();
        const cells = Array.from(t.tBodies[0].rows, r => r.cells[i]);
        return cells.map(c => c.dataset.value ?? c.textContent);"""
    original = [float(v) for v in browser.execute_script(column, "FD", False)]
    up = [float(v) for v in browser.execute_script(column, "FD", True)]
    down = [float(v) for v in browser.execute_script(column, "FD", True)]
    assert original != up == sorted(original)
    assert down == sorted(original, reverse=True)
    gammas = browser.execute_script(column, "γ", True)
    known = [gamma for gamma in gammas if gamma]
    assert gammas == sorted(known) + [""] * (len(gammas) - len(known))
    models = browser.execute_script(column, "model", True)
    assert models == sorted(models)


def show(browser: Chrome, report: Path, width: str) -> None:
    """Open a report in a window of the given width, after the log of the last one is dropped."""
    browser.get_log("browser")  # type: ignore[no-untyped-call]
    wide, high = WIDTHS[width]
    metrics = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": wide < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.resolve().as_uri())


def screenshot(browser: Chrome, path: Path) -> None:
    """Keep the first screen and the whole page."""
    path.parent.mkdir(exist_ok=True)
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    whole = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    kept: dict[Path, dict[str, Any]] = {
        path: {},
        path.with_stem(f"{path.stem}-whole"): {"captureBeyondViewport": True, "clip": whole},
    }
    for name, how in kept.items():
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", how)
        name.write_bytes(base64.b64decode(shot["data"]))
