"""Imports run one way, and what must be quick imports nothing slow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ee_ray"
# A module may import those above it, never those below.
LAYERS = [
    "errors", "ending", "fold", "disk", "devices", "liveness", "spec.strict", "spec.tokenizer", "spec.data", "spec.model", "spec.stages", "spec.search", "spec.execution", "spec.sweep", "spec.load", "spec.reference",
    "identity", "data.builtin", "data.order", "data.files", "data.digests", "data.hub", "data.sources", "data.tokens",
    "data.shards", "data.workers", "data.pack", "data.build", "data.tokenizer", "data.portable", "plan", "objects", "bucket", "store", "pretrained", "board", "lease", "metrics", "events",
    "model", "interventions", "allocator", "feed", "world", "resume", "meter", "loss", "evaluate", "accelerate", "train", "publish", "stage",
    "frontier", "compare", "objective", "kernels", "curve", "optimum", "tradeoff", "transfer", "acquisition", "choices", "propose", "forecast", "ledger", "importance",
    "capacity", "sweep", "registered", "gc", "quote", "told", "cluster", "search", "trackers", "runner", "environment", "scatter", "run",
    "theory.flow", "theory.matrices", "theory.claims", "theory.allocation", "theory.findings",
    "report.words", "report.answers", "report.summary", "report.precision", "report.history", "report.paper", "report.tables", "report.figures",
    "report.html", "report.samples", "report.sections", "report.page", "report.images", "report.theory", "report.compared", "report.compared_page", "report.plan_page",
    "export.choice", "export.recipe", "export.card", "export.folder", "samples",
    "verify", "measure", "progress", "log", "launch", "api", "dashboard", "cli",
]  # fmt: skip


def modules() -> dict[str, Path]:
    files = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name: path for name, path in files.items() if not name.endswith("__init__")}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ee_ray"):
            base = node.module.removeprefix("ee_ray").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                found.add(name if name in modules() else base)
    return found


def test_every_module_has_its_place_in_the_order():
    assert sorted(modules()) == sorted(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_a_module_imports_only_what_stands_above_it(name):
    below = [other for other in imports(modules()[name]) if LAYERS.index(other) >= LAYERS.index(name)]
    assert not below, f"{name} imports {below}"


def test_imports_stand_at_the_top_of_files_apart_from_the_command_line():
    for name, path in modules().items():
        if name == "cli":
            continue
        tree = ast.parse(path.read_text())
        inner = [
            node.lineno
            for function in ast.walk(tree)
            if isinstance(function, (ast.FunctionDef, ast.ClassDef))
            for node in ast.walk(function)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        assert not inner, f"{path}: imports inside functions at lines {inner}"


@pytest.mark.parametrize("names", ["cli", "sweep, quote", "report.page, verify"])
def test_planning_and_reporting_import_neither_torch_nor_ray(names):
    statements = "; ".join(f"import ee_ray.{name.strip()}" for name in names.split(","))
    code = f"{statements}; import sys; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ray_is_known_to_six_files_only():
    users = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    }
    assert users == {"cluster", "search", "trackers", "runner", "run", "scatter"}
