"""The built-in rows: the same on every Python and platform, drawn from this project's history."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from trial import builtin
from trial.builtin import frozen_rows
from trial.builtin.docs_rows import MAX_CHARACTERS, MIN_CHARACTERS, docs_rows
from trial.builtin.project_source import COMMIT, python_files

HASHES = {
    "python-docs": (2662, "2e474399279bda41", "87b69a4189301583"),
    "code-forget": (475, "394ec9d59a64ec19", "9c42480f06807b7f"),
    "code-retain": (896, "9ccff15eb70000fe", "2c3965426155fc99"),
}
"""Rows of each dataset, the hash of their text, and that of their tokens."""

READ = """
import hashlib, json, sys
from trial.builtin import DATASETS, frozen_rows, model_path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
rows = {name.split(":")[1]: read() for name, read in DATASETS.items()}
files, modules = sorted(set(opened)), sorted({"ast", "torch", "turtle"} & set(sys.modules))
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(str(model_path() / "tokenizer.json"))
def hash_of_tokens(rows):
    texts = [row["question"] + row["answer"] for row in rows]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
found = {
    name: [len(part), frozen_rows.content_hash(part), hash_of_tokens(part)]
    for name, part in rows.items()
}
print(json.dumps({"files": files, "modules": modules, "found": found, "python": sys.version}))
"""


def read_with(python, folder) -> dict[str, object]:
    """What `READ` says under a Python that has nothing but this project and `tokenizers`."""
    root = Path(builtin.__file__).parents[2]
    (folder / "tokenizers").symlink_to(Path(tokenizers.__file__).parent)
    (folder / "trial").symlink_to(root / "trial")
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{READ}"
    command = [str(python), "-I", "-B", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def other_pythons() -> list[Path]:
    """Interpreters of pyenv that this project supports, other than this one."""
    found = Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python")
    return sorted(python for python in found if python.parents[1].name != sys.version.split()[0])


def test_rows_and_their_tokens_are_the_recorded_ones_and_only_their_file_is_read(tmp_path):
    read = read_with(sys.executable, tmp_path)
    assert read["found"] == {name: list(values) for name, values in HASHES.items()}
    assert read["files"] == [str(tmp_path / "trial/builtin" / frozen_rows.FILE.name)]
    assert read["modules"] == []


@pytest.mark.parametrize("python", other_pythons(), ids=lambda python: python.parents[1].name)
def test_other_pythons_read_the_same_rows_and_tokens(python, tmp_path):
    read = read_with(python, tmp_path)
    assert read["python"] != sys.version
    assert read["found"] == {name: list(values) for name, values in HASHES.items()}


def test_questions_about_the_project_are_enough_and_different():
    rows = frozen_rows.read("python-docs")
    assert len({row["question"] for row in rows}) == len({row["answer"] for row in rows}) == 2662
    assert all(MIN_CHARACTERS <= len(row["answer"]) <= MAX_CHARACTERS for row in rows)
    assert len({row["question"].split("`")[0] for row in rows}) >= 4


def test_questions_about_the_project_are_those_of_its_history():
    try:
        files = python_files()
    except RuntimeError as error:
        pytest.skip(f"no history here: {error}")
    assert docs_rows(files) == frozen_rows.read("python-docs"), COMMIT


def test_what_is_written_is_read(tmp_path, monkeypatch):
    rows = [{"question": "Où ça ?\u2028", "answer": "\n    ici"}]
    monkeypatch.setattr(frozen_rows, "FILE", tmp_path / "rows.jsonl.gz")
    for file in (frozen_rows.FILE, tmp_path / "again.gz"):
        frozen_rows.write({"a": rows, "b": []}, file)
    assert frozen_rows.FILE.read_bytes() == (tmp_path / "again.gz").read_bytes()
    assert frozen_rows.read.__wrapped__("a") == rows
    assert frozen_rows.read.__wrapped__("b") == []
