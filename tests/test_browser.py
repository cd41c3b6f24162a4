"""What a person sees: the report and the live page in headless Chromium, at desktop and phone width."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import Place, ray_environment

from ee_ray.ledger import read_ledger
from ee_ray.report.page import make_report
from ee_ray.report.words import contrast
from ee_ray.sweep import open_sweep

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = {"desktop": (1060, 770), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Seen:
    """A page that was opened, what its console said against it, and what it asked the network for."""

    def __init__(self, browser, address: str, width: str, scheme: str = "light"):
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console", lambda line: self.errors.append(line.text) if line.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("body[data-drawn]", timeout=60_000)

    def figure(self, name: str) -> list[dict]:
        """The traces that Plotly has drawn, each with its number of points."""
        return self.page.evaluate("name => document.querySelector(`[data-figure=${name}]`).data.map(t => ({name: t.name, meta: t.meta, n: (t.x || t.ids).length}))", name)  # fmt: skip


@pytest.fixture(params=WIDTHS)
def report(request, browser, finished):
    seen = Seen(browser, (finished.folder / "reports/tiny/index.html").as_uri(), request.param)
    yield seen
    seen.page.close()


def test_the_report_says_its_verdict_first_and_draws_what_the_ledger_holds(report, finished):
    summary = finished.summary()
    verdict = report.page.locator("#verdict")
    assert f"lambda* = {summary['optimum']['lambda']:.2f}" in verdict.inner_text() and verdict.is_visible()
    assert verdict.bounding_box()["y"] < report.page.viewport_size["height"] / 2
    runs = [trace for trace in report.figure("optimum") if trace["meta"] == "runs"]
    assert [trace["n"] for trace in runs] == [len(summary["trials"]) // 2]
    recipes = {(row["lambda"], row["finetune_lr"]) for row in summary["trials"]}
    assert sum(trace["n"] for trace in report.figure("frontier") if trace["meta"] == "recipes") == len(recipes)
    drawn = report.page.locator("[data-figure]")
    assert drawn.count() >= 8 and drawn.count() == report.page.locator("[data-figure] svg.main-svg:first-child").count()
    assert [trace["n"] for trace in report.figure("tree")] == [1 + summary["stages"]["planned"]]


def test_the_report_asks_for_nothing_and_complains_of_nothing(report):
    assert report.errors == []
    assert [url for url in report.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_nothing_is_wider_than_the_screen(report):
    width = report.page.evaluate("document.documentElement.scrollWidth")
    assert width <= report.page.viewport_size["width"]


def test_no_axis_title_is_cut(report):
    cut = report.page.evaluate("""() => [...document.querySelectorAll('[data-figure] .xtitle, [data-figure] .ytitle')].filter(title => {
        const at = title.getBoundingClientRect(), box = title.closest('[data-figure]').getBoundingClientRect();
        return at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1;
    }).map(title => title.textContent)""")
    assert cut == []


def test_held_out_text_is_shown_with_what_each_stage_makes_of_it(report, finished):
    first = report.page.locator(".sample").first
    assert "D_post" in first.inner_text() and first.is_visible()
    rows = first.locator("tbody tr")
    levels = {row.inner_text().split("\t")[0] for row in rows.all()}
    assert {"lambda 0", "lambda 1"} <= levels and rows.count() == 3 * len(levels) - 1  # lambda 1 is not post-trained
    assert report.page.locator(".sample").count() == 6 and not report.page.locator(".sample").nth(1).is_visible()
    report.page.locator("#samples summary").click()
    assert report.page.locator(".sample").nth(1).is_visible()


def test_a_click_pins_the_recipe_with_its_keys_and_escape_unpins_it(report, finished):
    place = report.page.evaluate("""() => {
        const box = document.querySelector('[data-figure=optimum]');
        box.scrollIntoView({block: 'center'});
        const point = box.querySelector('.scatterlayer .trace:last-child .points path').getBoundingClientRect();
        return [point.x + point.width / 2, point.y + point.height / 2];
    }""")
    report.page.mouse.move(*place)
    report.page.wait_for_timeout(300)
    report.page.mouse.click(*place)
    pin = report.page.locator(".pin")
    pin.wait_for(timeout=60_000)
    text = pin.inner_text()
    assert any(row["finetune_key"] in text and row["pretrain_key"] in text for row in finished.summary()["trials"])
    report.page.keyboard.press("Escape")
    assert pin.count() == 0


def test_the_keyboard_reaches_the_verdict_and_pins_recipes(report):
    report.page.keyboard.press("Tab")
    assert report.page.evaluate("document.activeElement.className") == "skip"
    report.page.locator("#all-recipes summary").focus()
    report.page.keyboard.press("Enter")
    report.page.locator("button[data-pin='0']").focus()
    report.page.keyboard.press("Enter")
    assert report.page.locator(".pin").count() == 1


def test_training_curves_are_drawn_when_they_are_asked_for(report):
    assert report.page.locator("#training-pretrain svg").count() == 0
    report.page.locator("#training summary").click()
    report.page.locator("#training-finetune svg.main-svg").first.wait_for(timeout=60_000)
    assert report.page.evaluate("document.getElementById('training-pretrain').data.length") == 2  # lambda 0, two seeds


def test_dark_and_print_have_colours_of_their_own(browser, finished):
    seen = Seen(browser, (finished.folder / "reports/tiny/index.html").as_uri(), "desktop", "dark")
    ink = "() => document.querySelector('[data-figure=optimum]').layout.font.color"
    dark = seen.page.evaluate(ink)
    seen.page.emulate_media(color_scheme="light")
    seen.page.wait_for_function(f"dark => ({ink})() !== dark", arg=dark, timeout=30_000)
    assert seen.page.pdf()[:5] == b"%PDF-"
    seen.page.close()


@pytest.mark.skipif(
    shutil.which("pdftotext") is None, reason="pdftotext is not installed: apt-get install poppler-utils"
)
def test_in_print_a_heading_stands_on_the_page_of_its_figure(browser, finished, tmp_path):
    """Wherever the page ends: what stands above is made longer step by step."""
    seen = Seen(browser, (finished.folder / "reports/tiny/index.html").as_uri(), "desktop")
    seen.page.evaluate("document.getElementById('matched').before(document.createElement('hr'))")
    crossed = set()
    for height in range(0, 1200, 300):
        seen.page.evaluate("height => { document.querySelector('hr').style.height = `${height}px`; }", height)
        seen.page.pdf(path=tmp_path / "page.pdf", format="A4")
        text = subprocess.run(["pdftotext", tmp_path / "page.pdf", "-"], capture_output=True, text=True, check=True).stdout  # fmt: skip
        where = {word: {number for number, page in enumerate(text.split("\f")) if word in page} for word in ("Retained loss at matched", "At the same fine-tuning loss", "kept more by mixed")}  # fmt: skip
        assert len(set.union(*where.values())) == 1, (height, where)
        crossed |= set.union(*where.values())
    assert len(crossed) > 1
    seen.page.close()


def test_a_live_page_takes_in_what_is_published_while_it_is_open(browser, copy):
    """Half of the store is set aside, the page opened, the rest brought back as a running sweep would publish it."""
    stages, aside = copy.folder / "store/stages", copy.folder / "aside"
    aside.mkdir()
    last = [path for path in stages.iterdir() if copy.store.record(path.name)["kind"] == "finetune"][-6:]
    for path in last:
        path.rename(aside / path.name)
    command = [sys.executable, "-m", "ee_ray.cli", "dashboard", "tiny.yaml", "--port", "0"]
    server = subprocess.Popen(command, cwd=copy.folder, env={**ray_environment(), "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        address = server.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        seen = Seen(browser, address, "desktop")
        assert seen.page.locator("#verdict").inner_text().startswith("So far") or "So far" in seen.page.locator("#verdict").inner_text()  # fmt: skip
        assert "No run is going on" in seen.page.locator("#live").inner_text()
        live = {"schema": 1, "time": time.time(), "ray_dashboard": "http://127.0.0.1:8265", "counts": {"waiting": 3, "running": 1, "done": 24, "failed": 0},
                "running": [["slot0", "finetune", last[0].name, 1024, 2048]], "names": {last[0].name: "lambda 0.5, seed 1"}, "tokens": 9000, "tokens_left": 3000, "seconds": 9.0, "training_seconds": 6.0, "runs": {"done": 5, "most": 8}}  # fmt: skip
        copy.store.write_sweep("tiny", "live.json", live)
        seen.page.wait_for_selector("#live progress", timeout=60_000)
        strip = seen.page.locator("#live").inner_text()
        assert (
            "finetune lambda 0.5, seed 1" in strip
            and "1 running" in strip
            and "1.5k tokens/s; 0:09 gone" in strip
            and "5 runs finished, of at most 8" in strip
        )
        before = seen.page.evaluate("document.body.dataset.version")
        for path in aside.iterdir():
            os.rename(path, stages / path.name)
        seen.page.wait_for_function("before => document.body.dataset.version !== before", arg=before, timeout=60_000)
        seen.page.wait_for_function("() => !document.getElementById('verdict').innerText.includes('So far')", timeout=60_000)  # fmt: skip
        assert seen.errors == [] and all(url.startswith((address, "data:")) for url in seen.requests)
        with urllib.request.urlopen(f"{address}state.json", timeout=10) as answer:
            assert json.load(answer)["version"]
    finally:
        server.terminate()
        assert server.wait(timeout=20) == 130


def test_a_report_without_any_result_still_opens(browser, write, tmp_path):
    sweep = open_sweep(write(), tmp_path / "empty")
    page = make_report(sweep, read_ledger(sweep.spec, sweep.data, sweep.store)).page
    (tmp_path / "page.html").write_text(page)
    seen = Seen(browser, (tmp_path / "page.html").as_uri(), "phone")
    assert "No answer yet" in seen.page.locator("#verdict").inner_text() and seen.errors == []
    seen.page.close()


def test_a_sweep_of_frontiers_says_first_what_they_say(browser, tmp_path):
    place = Place(tmp_path)
    spec = place.write(search__anchors=[0, 1], search__max_trials=8, search__anchor_seeds=2, search__choices={"posttrain.replay": [0.0, 0.5]})  # fmt: skip
    place.ee_ray("run", spec, "--local")
    seen = Seen(browser, (tmp_path / "reports/tiny/index.html").as_uri(), "phone")
    said = seen.page.locator("#verdict strong").inner_text()
    assert said == contrast(place.summary()["comparison"]) != ""
    assert [trace["name"] for trace in seen.figure("frontier") if trace["meta"] == "recipes"] == ["unmixed", "unmixed + replay", "mixed", "mixed + replay"]  # fmt: skip
    assert seen.page.locator("[data-figure^=question]").count() == 0 and seen.errors == []
    seen.page.close()


def test_rounds_that_were_not_fitted_again_are_listed_without_an_interval(browser, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("ee_ray.report.history.MOST_FITS", 1)
    sweep = open_sweep(finished.folder / "tiny.yaml", finished.store.root)
    report = make_report(sweep, read_ledger(sweep.spec, sweep.data, sweep.store))
    assert report.tables["search"]["lo"].notna().sum() == 1 < len(report.tables["search"])
    (tmp_path / "page.html").write_text(report.page)
    seen = Seen(browser, (tmp_path / "page.html").as_uri(), "desktop")
    assert seen.page.locator("#rounds tbody tr").count() == len(report.tables["search"]) and seen.errors == []
    seen.page.close()
