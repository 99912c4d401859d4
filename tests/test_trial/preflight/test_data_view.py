"""What became of the data of a request, and one row as it is trained."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.paths import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trial.config.errors import ConfigError
from trial.config.sections import DataConfig, ModelConfig
from trial.data.tokens import Tokens
from trial.preflight.data_view import ViewRequest, row_view, view

EOS = "</s>"


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def request(path, row=None, model=None, **data):
    return ViewRequest(model=model or ModelConfig(), data=DataConfig(path=path, **data), row=row)


@pytest.fixture
def chats(tmp_path):
    """Ten chats of two answers, one without any, and an eval set that repeats one of them."""
    chats = [
        [
            {"role": "user", "content": f"First {n}?"},
            {"role": "assistant", "content": f"one {n} é"},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": f"two {n}"},
        ]
        for n in range(10)
    ]
    records = [{"messages": chat, "source": "web"} for chat in chats]
    records.append({"messages": [{"role": "user", "content": "Nobody?"}], "source": "web"})
    return write(tmp_path / "chats.jsonl", records)


def test_counts_and_a_row_as_trained(chats):
    seen = view(request(chats, row=3))
    assert (seen.error, seen.problems, seen.absent) == ("", (), "")
    summary, row = seen.summary, seen.row
    assert (summary.train_rows, summary.eval_rows, summary.skipped) == (9, 1, 1)
    assert summary.unused_columns == ("source",)
    assert (row.number, len(row.pieces)) == (3, 4)
    texts = [text for text, _ in row.pieces]
    number = texts[0].partition("First ")[2][0]
    assert [trained for _, trained in row.pieces] == [False, True, False, True]
    assert texts[1] == f" one {number} é{EOS}"
    assert texts[3] == f" two {number}{EOS}"
    assert "And then?" in texts[2]


def test_the_last_answer_alone_is_shown_where_it_alone_counts(chats):
    row = view(request(chats, row=0, train_on="last")).row
    assert [trained for _, trained in row.pieces] == [False, True]
    assert row.pieces[1][0].startswith(" two ")
    assert "one " in row.pieces[0][0]


def test_cut_answers_are_counted(tmp_path):
    words = " ".join(["word"] * 60)
    short = [{"question": f"q{n}", "answer": "a"} for n in range(8)]
    long = [{"question": f"long {n}", "answer": words} for n in range(4)]
    path = write(tmp_path / "rows.jsonl", [*short, *long])
    summary = view(request(path, max_length=32)).summary
    assert (summary.truncated, summary.answers_cut) == (4, 4)


def test_refused_data_are_problems_and_no_exception(tmp_path):
    missing = view(request(str(tmp_path / "none.jsonl")))
    assert [problem.key for problem in missing.refusals()] == ["data.path"]
    assert missing.summary is None
    path = write(tmp_path / "rows.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(5)])
    wrong = view(request(path, prompt_format="no_such"))
    assert [problem.key for problem in wrong.refusals()] == ["data.prompt_format"]


def test_a_row_that_is_not_there_is_refused_with_those_that_are(chats):
    (problem,) = view(request(chats, row=9)).refusals()
    assert (problem.key, problem.expected, problem.got) == ("--row", "0 to 8", "9")


def test_rows_are_counted_without_the_model(chats):
    name = "nobody-here/no-such-model"
    seen = view(request(chats, row=0, model=ModelConfig(name_or_path=name)))
    assert (seen.absent, seen.row, seen.problems) == (name, None, ())
    assert (seen.summary.train_rows, seen.summary.skipped) == (9, 1)
    assert (seen.summary.train_tokens, seen.summary.data_hash) == (0, "")


def byte_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize(
    ("text", "edge", "pieces"),
    [
        ("ab é c", 2, [("ab", False), (" é c", True)]),
        # The edge lies between the two bytes of é.
        ("ab é c", 4, [("ab ", False), ("é c", True)]),
        ("aa\n\nb", 3, [("aa\n", False), ("\nb", True)]),
    ],
)
def test_stretches_make_up_the_whole_text(text, edge, pieces):
    tokenizer = byte_tokenizer()
    ids = np.array(tokenizer(text)["input_ids"], np.int32)
    assert len(ids) == len(text.encode())
    trained = np.arange(len(ids)) >= edge
    tokens = Tokens(ids, trained, np.array([[0, len(ids)]], np.int64))
    row = row_view(tokens, 0, tokenizer)
    assert [tuple(piece) for piece in row.pieces] == pieces
    assert (row.tokens, row.counted) == (len(ids), len(ids) - edge)
    with pytest.raises(ConfigError):
        row_view(tokens, -1, tokenizer)


def test_importing_the_module_loads_no_torch():
    code = "import sys, trial.preflight.data_view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
