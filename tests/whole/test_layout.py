"""Limits of the layout: sizes of folders, files, classes, functions; documented paths exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGES = ("sweep", "trial", "results")
FILES_OF_A_FOLDER, LINES_OF_A_FILE, LINES_OF_A_CLASS, LINES_OF_A_FUNCTION = 12, 400, 250, 60
GENERATED = re.compile(r"runs/|\.venv/|report/")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def definitions(path: Path, kind: type[ast.AST] | tuple[type[ast.AST], ...]):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kind):
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_folder_has_too_many_files():
    counts = Counter(p.parent for p in sources(*PACKAGES) if not p.stem.startswith("__"))
    assert {str(p): n for p, n in counts.items() if n > FILES_OF_A_FOLDER} == {}


def test_no_file_is_too_long():
    lengths = {str(p): len(p.read_text().splitlines()) for p in sources(*PACKAGES, "tests")}
    bench = str(ROOT / "tests" / "bench")
    long = {p: n for p, n in lengths.items() if n > LINES_OF_A_FILE and not p.startswith(bench)}
    assert long == {}


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


def pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


@pytest.mark.parametrize("page", pages())
def test_paths_and_links_of_a_page_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"(?<![\w/.])((?:sweep|trial|results|tests|spaces|docs)/[\w/.-]*\w)", text)
    linked = [
        (Path(page).parent / link.partition("#")[0]).as_posix()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in link and not link.startswith("#")
    ]
    missing = [
        path
        for path in {*named, *linked}
        if not GENERATED.search(path) and not any(ROOT.glob(path)) and not (ROOT / path).exists()
    ]
    assert sorted(missing) == []


@pytest.mark.parametrize("page", pages())
def test_modules_named_in_a_page_exist(page):
    """`sweep.study.decider` is a module or an attribute of one."""
    text = (ROOT / page).read_text()
    missing = []
    for name in set(re.findall(r"`((?:sweep|trial|results)(?:\.(?!yaml)\w+)+)`", text)):
        parts = name.split(".")
        found = any(
            (ROOT.joinpath(*parts[:end])).is_dir()
            or (ROOT.joinpath(*parts[:end]).with_suffix(".py")).is_file()
            for end in range(2, len(parts) + 1)
        )
        if not found:
            missing.append(name)
    assert sorted(missing) == []
