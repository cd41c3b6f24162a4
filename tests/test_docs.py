"""What README and docs/ say can be done: every command is one, every link leads somewhere, and the tutorial works."""

import contextlib
import json
import re
import shlex

import pytest
import yaml
from conftest import ROOT, Place, tiny

import ee_ray.cli
from ee_ray.cli import main
from ee_ray.spec.sweep import SweepSpec

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


def commands(text: str) -> list[list[str]]:
    """The commands of indented blocks, split as a shell does."""
    return [shlex.split(line, comments=True)[1:] for line in re.findall(r"^ {4}(ee-ray .*)$", text, re.MULTILINE)]


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().strip()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page):
    text = page.read_text()
    for name, *arguments in commands(text):
        main.commands[name].make_context(name, list(arguments))
    named = set(re.findall(r"`ee-ray ([a-z]+)", text))
    assert named <= set(main.commands), named - set(main.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if place:
            assert place in map(anchor, re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)), link


def test_every_page_is_reached_from_the_readme():
    text = (ROOT / "README.md").read_text()
    assert not [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text]


def test_every_command_is_documented_somewhere():
    said = "".join(page.read_text() for page in PAGES)
    assert not [name for name in main.commands if f"ee-ray {name}" not in said]


@pytest.fixture
def team(tmp_path):
    """The tutorial's folder with small files, and its sweep shrunk to three short trials."""
    for folder in ("data", "sweeps"):
        (tmp_path / folder).mkdir()
    lines = [f"Document {number} is a line of text that is like others but its own." for number in range(900)]
    for name in ("general.jsonl", "target.jsonl"):
        (tmp_path / "data" / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "data" / "later.txt").write_text("\n".join(lines))
    spec = yaml.safe_load((ROOT / "sweeps" / "own_text.yaml").read_text())
    data = {**spec["data"], "heldout_windows": 16}
    search = {"ladder": 4, "anchors": [0, 0.5, 1], "anchor_seeds": 1, "max_trials": 3}
    small = {**tiny(), "name": spec["name"], "data": data, "search": search}
    (tmp_path / "sweeps" / "own_text.yaml").write_text(yaml.safe_dump(small))
    return Place(tmp_path)


def test_the_tutorial_works_from_its_first_command_to_its_last(team, monkeypatch, capsys):
    monkeypatch.setattr(ee_ray.cli, "MEASURED_SECONDS", 0.5)
    here = [command for command in commands(TUTORIAL) if "--address" not in command]
    assert len(here) == len(commands(TUTORIAL)) - 1 == 10
    for command in here:
        team.ee_ray(*command)
    for file in ("reports/plan.html", "reports/own_text/index.html", "models/own_text/model.safetensors"):
        assert (team.folder / file).exists()
    (block,) = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)
    with contextlib.chdir(team.folder):
        exec(compile(block, "tutorial.md", "exec"), {})
    assert f"{team.summary('own_text')['optimum']['verdict']}" in capsys.readouterr().out


def test_the_snippets_of_the_tutorial_are_parts_of_sweeps():
    for block in re.findall(r"```yaml\n(.*?)```", TUTORIAL, re.DOTALL):
        SweepSpec.model_validate({**tiny(), **yaml.safe_load(block)})
