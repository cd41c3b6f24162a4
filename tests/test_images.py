"""Figures as files: what `ee-ray report --images` writes, drawn by a real browser, and what it says where none is."""

import json
import struct

import pytest

from ee_ray.errors import UserError
from ee_ray.report.images import browser


def _has_browser() -> bool:
    try:
        return bool(browser())
    except UserError:
        return False


@pytest.mark.skipif(not _has_browser(), reason="no Chromium here: apt-get install chromium")
def test_every_figure_is_written_as_png_and_svg_with_what_the_ledger_holds(copy):
    told = json.loads(copy.ee_ray("report", "tiny.yaml", "--images", "--json").stdout)
    folder = copy.folder / "reports/tiny/images"
    assert sorted(told["images"]) == sorted(str(path.relative_to(copy.folder)) for path in folder.iterdir())
    names = {path.stem for path in folder.iterdir()}
    assert {"optimum", "losses", "frontier", "frontier-pre", "tree", "noise"} <= names
    for name in names:
        png = (folder / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert png[:8] == b"\x89PNG\r\n\x1a\n" and width > height > 500
        assert (folder / f"{name}.svg").read_text().startswith("<svg")
    optimum = (folder / "optimum.svg").read_text()
    assert f"lambda* = {told['optimum']['lambda']:.2f}" in optimum
    runs = [row for row in told["trials"] if row["finetune_lr"] == 0.0001]
    assert optimum.count('class="point plotly-customdata"') == len(runs)


def test_without_a_browser_nothing_is_written_and_one_line_says_what_to_install(copy, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chromium")
    done = copy.ee_ray("report", "tiny.yaml", "--images", status=2)
    assert done.stderr.count("error:") == 1 and "apt-get install chromium" in " ".join(done.stderr.split())
    assert not done.stdout and not (copy.folder / "reports/tiny/images").exists()


def test_a_browser_that_ends_at_once_is_named(copy, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", "/bin/false")
    done = copy.ee_ray("report", "tiny.yaml", "--images", status=2)
    assert "/bin/false does not draw" in done.stderr and "Traceback" not in done.stderr
