"""Which data of a sweep are looked at, and how they are printed; the child is played."""

from __future__ import annotations

import io
import json
import subprocess

import pytest
from rich.console import Console

from sweep.loading.loader import load
from sweep.planning import data_view
from sweep.planning.data_view import SeenData, data_sets, lines, look, print_data
from trial.config.errors import ConfigError
from trial.preflight.data_view import DataView, RowView
from trial.store.records import DataSummary

SUMMARY = DataSummary(
    train_rows=1200, eval_rows=30, skipped=9, overlapping=4, duplicates=5, duplicates_across=2,
    truncated=20, answers_cut=7, used_columns=("question", "answer"), unused_columns=("id", "url"),
    prompt_format="llama2", train_on="all", tokenize="together", train_tokens=64_000,
    eval_tokens=1500, data_hash="0123456789abcdef",
)  # fmt: skip
ROW = RowView(number=3, tokens=9, counted=4, pieces=(("<s>Q: [bold]\x1b[2J ", False), (" A", True)))


@pytest.fixture
def spec(tmp_path):
    def make(space, base="{}"):
        path = tmp_path / "sweep.yaml"
        path.write_text(f"base: {base}\nspace: {space}\nsampler: random\nstop: {{trials: 3}}\n")
        return load(path)

    return make


def play(monkeypatch, *views, code=0):
    """A child that answers with these views; returns what it is asked."""
    asked = []

    def run(words, *, input, **_):
        asked.extend(json.loads(input))
        answer = json.dumps([view.model_dump(mode="json") for view in views])
        return subprocess.CompletedProcess(words, code, answer, "it broke")

    monkeypatch.setattr(data_view.subprocess, "run", run)
    return asked


def test_sets_differ_in_data_and_tokenizer_alone(spec):
    sets, count = data_sets(spec("{lora.r: [2, 4], data.max_length: [32, 64]}"))
    assert [one.params for one in sets] == ["max_length=32", "max_length=64"]
    assert [one.config.data.max_length for one in sets] == [32, 64]
    assert count == 2
    sets, count = data_sets(spec("{lora.r: [2, 4], training.learning_rate: [0.1, 0.2]}"))
    assert ([one.params for one in sets], count) == ([""], 1)


def test_the_number_of_sets_is_bounded_and_told(spec, monkeypatch):
    searched = spec(f"{{data.split_seed: {list(range(12))}}}")
    asked = play(monkeypatch, *[DataView(summary=SUMMARY)] * data_view.MOST)
    told = lines(searched)
    assert [request["data"]["split_seed"] for request in asked] == list(range(data_view.MOST))
    assert told[-1] == f"data: {12 - data_view.MOST} further sets not looked at"


def test_lines_of_check_hold_every_count(spec, monkeypatch):
    play(monkeypatch, DataView(summary=SUMMARY))
    first, second = lines(spec("{lora.r: [2, 4]}"))
    assert first == (
        "data: 1,200 training and 30 held-out rows as llama2; 9 skipped, 20 cut (7 answers lost"
        " tokens), 2 of the held-out rows trained on too"
    )
    assert second.split("; ") == [
        "  columns not used: id, url",
        "5 rows repeat another one",
        "4 training rows left out, the eval set asks the same",
    ]


def test_what_a_trial_would_refuse_is_refused(spec, monkeypatch):
    problem = {"key": "data.path", "expected": "rows", "got": "none", "near": "", "where": ""}
    play(monkeypatch, DataView(problems=(problem,)))
    with pytest.raises(ConfigError, match=r"data\.path: rows, got none"):
        lines(spec("{lora.r: [2, 4]}"))


def test_a_broken_child_does_not_end_a_check(spec, monkeypatch):
    searched = spec("{lora.r: [2, 4]}")
    play(monkeypatch, code=1)
    assert lines(searched) == ["the data could not be counted: it broke"]
    with pytest.raises(ValueError, match="it broke"):
        look(data_sets(searched)[0])
    play(monkeypatch, DataView(error="KeyError: 'x'"))
    assert lines(searched) == ["data: not counted: KeyError: 'x'"]


def printed(seen, **options):
    file = io.StringIO()
    print_data(seen, Console(file=file, emoji=False, highlight=False, width=100, **options))
    return file.getvalue()


def test_marks_stand_for_colours_on_a_pipe():
    text = printed(SeenData("max_length=32", DataView(summary=SUMMARY, row=ROW)))
    assert text.endswith("<s>Q: [bold]␛[2J ⟦ A⟧\n")
    assert "training row 3 of 1,200 (from 0): 9 tokens, 4 count in the loss" in text
    for count in ("1,200", "30", "9 (", "5 (", "2 held-out", "4 training", "20 rows; 7 answers"):
        assert count in text
    assert "id, url" in text
    assert "llama2" in text


def test_colours_on_a_terminal():
    seen = SeenData("", DataView(summary=SUMMARY, row=ROW))
    text = printed(seen, force_terminal=True, color_system="standard")
    assert text.endswith("\x1b[2m<s>Q: [bold]␛[2J \x1b[0m\x1b[1;32m A\x1b[0m\n")
    assert "⟦" not in text


def test_a_model_that_is_not_here_is_told():
    seen = SeenData("", DataView(summary=SUMMARY, absent="meta/x"))
    text = printed(seen)
    assert "meta/x is not on this machine: rows are counted, tokens are not" in text
    assert "lost tokens" not in text
