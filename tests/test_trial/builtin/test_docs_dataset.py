"""The built-in rows: documentation, enough of it and different, that the model has not seen."""

import inspect
import logging.handlers
import shutil
import subprocess
import sys

import pytest

from trial.builtin import docs_dataset, make_tiny_llama
from trial.builtin.docs_dataset import MAX_CHARACTERS, MIN_CHARACTERS


def test_rows_say_what_the_docstrings_say():
    answers = {
        row["question"].split("`")[1].split("(")[0]: row["answer"] for row in docs_dataset.read()
    }
    documented = {
        "shutil.copytree": shutil.copytree,
        "logging.handlers.SocketHandler.createSocket": logging.handlers.SocketHandler.createSocket,
        "shutil.SpecialFileError": shutil.SpecialFileError,
    }
    for name, thing in documented.items():
        docstring = " ".join((inspect.getdoc(thing) or "").split())
        assert docstring.startswith(answers[name])


def test_rows_are_enough_and_different():
    rows = docs_dataset.read()
    assert 1500 <= len(rows) <= 4000
    assert len({row["question"] for row in rows}) == len(rows)
    assert len({row["answer"] for row in rows}) == len(rows)
    assert all(MIN_CHARACTERS <= len(row["answer"]) <= MAX_CHARACTERS for row in rows)
    assert len({row["question"].split("`")[0] for row in rows}) >= 4


def test_the_modules_of_the_questions_are_not_imported():
    program = (
        "import sys; from trial.builtin import docs_dataset; docs_dataset.read();"
        "print({'turtle', 'xmlrpc.server', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the  answer\n   to everything.\n\nMore.", "Return the answer to everything."),
        ("Too short.", ""),
        (">>> print('an example, not an answer')", ""),
        ("One good sentence here. " + "x" * 200, "One good sentence here."),
        ("x" * 200, ""),
    ],
)
def test_summaries(docstring, expected):
    assert docs_dataset.summary(docstring) == expected


def test_answers_were_not_in_the_pretraining_text():
    text = " ".join(" ".join(make_tiny_llama.corpus()).split())
    answers = [row["answer"] for row in docs_dataset.read()]
    seen = [answer for answer in answers if answer in text]
    # A few answers are mere scraps, such as a usage line.
    assert len(seen) < 0.01 * len(answers)
    assert len(text) > 2e6
