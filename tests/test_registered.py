"""A sweep whose sources moved or changed after it ran: what is told is what ran, and nothing is mixed."""

import shutil
from pathlib import Path

import pytest
from conftest import Place

from ee_ray.api import load_sweep, optimum, plan
from ee_ray.dashboard import Page
from ee_ray.data.builtin import documents
from ee_ray.errors import UserError
from ee_ray.registered import open_as_it_ran

READERS = (["report", "own.yaml"], ["status", "own.yaml"], ["verify", "own.yaml"], ["export", "own.yaml", "model", "--overwrite"], ["compare", "own.yaml", "own.yaml"])  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A sweep of three files, finished."""
    place = Place(tmp_path_factory.mktemp("own"))
    for role, domain in {"pre": "web", "post": "music", "ft": "chemistry"}.items():
        lines = [text.replace("\n", " ") for text in documents(domain, 12_000)]
        (place.folder / f"{role}.txt").write_text("\n".join(lines))
    files = {f"data__{role}": {"source": f"file:{role}.txt"} for role in ("pre", "post", "ft")}
    place.write("own.yaml", name="own", **files, stages__pretrain__tokens=2048, stages__posttrain__tokens=1024, stages__finetune__tokens=512,
                stages__finetune__learning_rates=[1e-4], search__seeds=[0], search__anchor_seeds=1, search__max_trials=3)  # fmt: skip
    place.ee_ray("run", "own.yaml", "--local", "--quiet")
    return place.folder


@pytest.fixture
def own(trained, tmp_path) -> Place:
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "own")
    return Place(tmp_path / "own")


def test_without_its_sources_a_sweep_is_told_as_it_was(own):
    before, page = own.summary("own"), (own.folder / "reports/own/index.html").read_text()
    (own.folder / "post.txt").unlink()
    (own.folder / "pre.txt").rename(own.folder / "elsewhere.txt")
    for command in READERS:
        done = own.ee_ray(*command)
        said = " ".join(done.stderr.split())
        assert "post.txt: no such file" in said and "pre.txt: no such file" in said, command
    assert own.summary("own") == before and (own.folder / "reports/own/index.html").read_text() == page
    assert Page(open_as_it_ran(own.folder / "own.yaml", own.store.root)).refresh()


def test_without_its_sources_nothing_is_planned_or_trained(own):
    (own.folder / "post.txt").unlink()
    for command in (["plan", "own.yaml"], ["run", "own.yaml", "--local"], ["noise", "own.yaml", "--local"]):
        assert "post.txt: no such file" in " ".join(own.ee_ray(*command, status=2).stderr.split())
    with pytest.warns(UserWarning, match=r"post\.txt: no such file"):
        sweep = load_sweep(own.folder / "own.yaml", own.store.root)
    assert optimum(sweep) is not None
    with pytest.raises(UserError, match=r"post\.txt: no such file"):
        plan(sweep)


def test_a_source_that_changed_is_another_sweep_and_is_said_to_be(own):
    before, text = own.summary("own"), (own.folder / "post.txt").read_text()
    (own.folder / "post.txt").write_text(text + "\none more document\n")
    changed = "data.post: file:post.txt has other content than when this sweep last ran"
    done = own.ee_ray("report", "own.yaml")
    assert f"{changed}: this tells of the sweep that ran" in " ".join(done.stderr.split())
    assert own.summary("own") == before
    assert changed in " ".join(own.ee_ray("verify", "own.yaml", status=1).stdout.split())
    quotation = own.json("plan", "own.yaml", "--json")
    assert quotation["tokens"]["to_train"] > 0 and any(changed in warning for warning in quotation["warnings"])
    done = own.ee_ray("run", "own.yaml", "--local")
    assert f"{changed}: this is another sweep" in " ".join(done.stderr.split())
    after = own.summary("own")
    assert after["provenance"]["data"]["post"] != before["provenance"]["data"]["post"]
    assert not {row["finetune_key"] for row in after["trials"]} & {row["finetune_key"] for row in before["trials"]}
    assert "has other content" not in own.ee_ray("report", "own.yaml").stderr
    (own.folder / "post.txt").write_text(text)
    assert "nothing to train" in own.ee_ray("run", "own.yaml", "--local").stderr and own.summary("own") == before


def test_a_source_that_moved_and_is_named_where_it_is_is_the_same(own):
    before = own.summary("own")
    (own.folder / "post.txt").rename(own.folder / "moved.txt")
    spec = own.folder / "own.yaml"
    spec.write_text(spec.read_text().replace("file:post.txt", "file:moved.txt"))
    assert own.ee_ray("status", "own.yaml").stderr == ""
    own.ee_ray("report", "own.yaml")
    assert own.summary("own")["trials"] == before["trials"]


def test_a_spec_that_names_another_source_is_not_told_of_by_the_old_one(own):
    spec = own.folder / "own.yaml"
    spec.write_text(spec.read_text().replace("file:post.txt", "file:other.txt"))
    assert "other.txt: no such file" in " ".join(own.ee_ray("report", "own.yaml", status=2).stderr.split())
