"""Sweeps side by side: what each says, gaps at matched fine-tuning loss, and no pooling of what was measured apart."""

import contextlib
import shutil

import pandas as pd
import pytest
from conftest import Place, fetched_by, figures_of

from ee_ray.compare import compare
from ee_ray.ledger import read_ledger
from ee_ray.sweep import open_sweep


@pytest.fixture(scope="module")
def pair(finished, tmp_path_factory):
    """The finished sweep, and one beside it whose post-training is slower and which has fewer trials."""
    place = Place(tmp_path_factory.mktemp("pair"))
    shutil.copytree(finished.folder, place.folder, dirs_exist_ok=True)
    slower = place.write("slower.yaml", name="slower", stages__posttrain__learning_rate=0.0005, search__max_trials=6)
    place.ee_ray("run", slower, "--local", "--quiet")
    return place


def test_each_sweep_says_what_its_own_report_says(pair):
    told = pair.json("compare", "tiny.yaml", "slower.yaml", "--json")
    for each in told["sweeps"]:
        summary = pair.summary(each["sweep"])
        for name in ("verdict", "ci95", "gain_over_0", "gain_over_1", "lambda"):
            assert each[name] == summary["optimum"][name]
        assert each["tokens"] == summary["tokens"]


def test_the_gap_is_that_of_the_two_ledgers_and_unequal_numbers_are_told(pair):
    told = pair.json("compare", "tiny.yaml", "slower.yaml", "--json")["against_first"][0]
    tables = []
    with contextlib.chdir(pair.folder):
        for name, letter in (("tiny.yaml", "a"), ("slower.yaml", "b")):
            sweep = open_sweep(name, "store")
            rows = read_ledger(sweep.spec, sweep.data, sweep.store).rows
            tables.append(rows.rename(columns={"L_ft": "x", "L_ret": "y"}).assign(method=letter))
    expected = compare(pd.concat(tables), "b", "a")
    assert told["trials"] == {"b": 12, "a": 16}
    assert told["unequal"] and expected.unequal
    assert told["gap"]["value"] == pytest.approx(expected.plain.mean, abs=1e-5)
    assert told["gap_at_equal_trials"]["value"] == pytest.approx(expected.matched.mean, abs=1e-5)
    assert "unequal numbers of trials" in pair.ee_ray("compare", "tiny.yaml", "slower.yaml").stdout


def test_the_page_draws_both_and_opens_without_a_network(pair):
    pair.ee_ray("compare", "tiny.yaml", "slower.yaml", "--out", "both")
    page = (pair.folder / "both/index.html").read_text()
    for part in ('data-figure="intervals"', 'data-figure="frontiers"', 'data-figure="gaps"', "tiny against slower"):
        assert part in page
    figures = figures_of(page)
    assert set(figures) == {"intervals", "frontiers", "gaps"} and all(figure["data"] for figure in figures.values())
    assert fetched_by(page) == []


def test_what_was_measured_on_different_data_is_not_pooled(pair):
    pair.write("other.yaml", name="other", data__post={"source": "builtin:music", "size": 21_000})
    pair.ee_ray("run", "other.yaml", "--local", "--quiet")
    done = pair.ee_ray("compare", "tiny.yaml", "other.yaml", status=2)
    for name in ("tiny.yaml", "other.yaml"):
        sweep = open_sweep(pair.folder / name, pair.folder / "store")
        assert sweep.data["post"] in done.stderr
    assert "D_post" in done.stderr and "D_ft" not in done.stderr
    told = pair.json("compare", "tiny.yaml", "other.yaml", "--apart", "--json")
    assert (len(told["sweeps"]), told["against_first"]) == (2, [])


def test_a_sweep_without_results_is_named(pair):
    pair.write("new.yaml", name="new", stages__pretrain__learning_rate=0.001)
    assert "new.yaml: nothing is finished yet" in pair.ee_ray("compare", "tiny.yaml", "new.yaml", status=2).stderr
