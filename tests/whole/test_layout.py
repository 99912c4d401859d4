"""Limits of the layout: sizes, names of test files, private imports; what is documented exists."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGES = ("sweep", "trial", "results")
FILES_OF_A_FOLDER, LINES_OF_A_FILE, LINES_OF_A_CLASS, LINES_OF_A_FUNCTION = 12, 400, 250, 60


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def definitions(path: Path, kind: type[ast.AST] | tuple[type[ast.AST], ...]):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kind):
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_folder_has_too_many_files():
    files = sources(*PACKAGES, "tests")
    counts = Counter(path.parent for path in files if not path.stem.startswith("__"))
    assert {str(p): n for p, n in counts.items() if n > FILES_OF_A_FOLDER} == {}


def test_no_file_is_too_long():
    lengths = {str(p): len(p.read_text().splitlines()) for p in sources(*PACKAGES, "tests")}
    assert {path: n for path, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_no_class_and_no_function_is_too_long():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        (str(path), name, lines)
        for path in sources(*PACKAGES)
        for kind, limit in ((ast.ClassDef, LINES_OF_A_CLASS), (functions, LINES_OF_A_FUNCTION))
        for name, lines in definitions(path, kind)
        if lines > limit
    ]
    assert long == []


def test_nothing_private_is_imported_from_another_folder():
    private = []
    for path in sources(*PACKAGES):
        package = ".".join(path.relative_to(ROOT).parts[:-1])
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGES):
                continue
            elsewhere = node.module.rpartition(".")[0] != package
            private += [
                (str(path), node.module, alias.name)
                for alias in node.names
                if elsewhere and alias.name.startswith("_")
            ]
    assert private == []


TOPICS = {
    "test_results/render": {"browser"},
    "test_sweep/loading": {"broken_files", "fuzzed_files", "hostile_files"},
    "test_sweep/ray_backend/real_ray": {"cluster_lost", "nodes", "packed", "packed_ranks"},
    "test_sweep/storage": {"storage"},
    "test_trial/builtin": {"builtin"},
    "test_trial/devices": {"optimum_habana_internals"},
    "test_trial/effects": {"architectures", "effects", "lora_fields", "training_arguments"},
    "test_trial/export": {"export", "lora_fields"},
    "test_trial/packed": {
        "failures", "graphs", "independence", "own_randomness", "ranks", "refill", "solo_equality",
    },
    "test_trial/training": {
        "failures", "loraplus", "loss_per_byte", "one_trial", "ranks", "resume",
    },
}  # fmt: skip
"""Test files, by folder, that hold several modules to one promise; others test the module whose
name they have."""


def test_a_test_file_has_the_name_of_a_module():
    others: dict[str, set[str]] = {}
    for path in (ROOT / "tests").glob("test_*/**/test_*.py"):
        folder, name = path.parent.relative_to(ROOT / "tests"), path.stem.removeprefix("test_")
        package = Path(*folder.parts).as_posix().removeprefix("test_")
        if not (ROOT / package / f"{name}.py").is_file():
            others.setdefault(folder.as_posix(), set()).add(name)
    assert others == TOPICS


def tracked(*patterns: str) -> list[str]:
    words = ["git", "ls-files", *patterns]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.mark.parametrize("page", tracked("*.md"))
def test_links_of_a_page_lead_somewhere(page):
    text = (ROOT / page).read_text()
    linked = [
        (Path(page).parent / link.partition("#")[0]).as_posix()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link and not link.startswith("#")
    ]
    assert [path for path in linked if not (ROOT / path).exists()] == []


NAMING = ("*.md", "*.py", "*.yaml", "*.toml", "*Makefile", "*Containerfile", ".ci/*")
"""Files that name other files and modules: pages as a whole, of Python docstrings and comments."""
BROKEN = "tests/broken/"
"""Sweep files of mistakes."""
PATH = re.compile(r"(?<![\w/.{}$-])((?:sweep|trial|results|tests|spaces|docs)/[\w/.-]*\w)")
MODULE = re.compile(r"(?:`|-m )((?:sweep|trial|results)(?:\.(?!yaml)\w+)+)")
MADE_UP = re.compile(r"runs/|\.venv/|report/|spaces/x\.yaml")


def prose(path: Path) -> str:
    """What a file says to its reader."""
    text = path.read_text()
    if path.suffix != ".py":
        return text
    alone = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    said = [node.value for node in alone if isinstance(node, ast.Constant)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join([*map(str, said), *comments])


def named(expression: re.Pattern[str]) -> list[tuple[str, str]]:
    """What the files name: file, name."""
    files = [file for file in tracked(*NAMING) if not file.startswith(BROKEN)]
    return [(file, found) for file in files for found in expression.findall(prose(ROOT / file))]


def top_level_names(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
        else:
            found.add(getattr(node, "name", ""))
    return found


def is_module_or_has(dotted: str) -> bool:
    """Whether the longest module in `dotted` is all of it, or has the next part as a name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:end])
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file():
            return end == len(parts) or parts[end] in top_level_names(module)
    return False


def test_paths_that_are_named_exist():
    missing = [
        (file, path)
        for file, path in named(PATH)
        if not MADE_UP.search(path) and not (ROOT / path).exists() and not any(ROOT.glob(path))
    ]
    assert missing == []


def test_modules_that_are_named_exist():
    """`sweep.study.decider` is a module, or `sweep.study.decider.OptunaDecider` a name in one."""
    assert [(file, name) for file, name in named(MODULE) if not is_module_or_has(name)] == []
