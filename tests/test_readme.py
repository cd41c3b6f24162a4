"""What the README and the example sweeps say can be done."""

import json
import re
import shlex
import shutil

import pytest
import yaml
from conftest import ROOT, Place

from ee_ray.cli import main
from ee_ray.spec.load import load_sweep

README = (ROOT / "README.md").read_text()
COMMANDS = [shlex.split(line, comments=True) for line in re.findall(r"^ {4}(ee-ray .*)$", README, re.MULTILINE)]


@pytest.fixture
def own(tmp_path):
    """A folder as the README has it: the example sweeps, and three files of text beside them."""
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    (tmp_path / "data").mkdir()
    lines = [f"Document {number} is a line of text that is like others but its own." for number in range(40_000)]
    for name in ("general.jsonl", "target.jsonl"):
        (tmp_path / "data" / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (tmp_path / "data" / "later.txt").write_text("\n".join(lines))
    return Place(tmp_path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_is_one(command):
    name, *arguments = command[1:]
    main.commands[name].make_context(name, list(arguments))


def test_the_example_over_own_files_plans_as_it_stands(own):
    quotation = own.json("plan", "sweeps/own_text.yaml", "--json")
    assert quotation["search"]["trials"] == 9
    assert all(passes < 1 for passes in quotation["epochs"].values())


def test_the_snippets_of_the_readme_are_sweeps(own):
    snippets = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
    assert len(snippets) == 3
    text = (own.folder / "sweeps/own_text.yaml").read_text()
    rates = re.sub(r"\b(\d)e-(\d)", r"\1.0e-\2", text)
    for snippet in snippets:
        file = own.folder / "sweeps/snippet.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(rates), **snippet}))
        load_sweep(file)


def test_make_and_links_lead_somewhere():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ {4}make (\w+)", README, re.MULTILINE)) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
