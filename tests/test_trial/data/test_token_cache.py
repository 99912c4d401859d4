"""Hashes, dates and counts of tokens, made anew and from the cache."""

import datetime
import json
import logging
import os

import numpy as np
import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from helpers.training.letters import letter_tokenizer
from helpers.training.models import make_tokenizer
from tokenizers import Tokenizer

from trial.config.sections import DataConfig
from trial.data.examples import Row
from trial.data.messages import Message
from trial.data.prepare import prepare
from trial.data.tokens import TokenSettings, tokenize_rows

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] | upper }}:{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
TWO_ANSWERS = Row(
    (
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    ),
    "chat",
)
DATED = "{{ strftime_now('%d.%m.%Y') }}" + TEMPLATE


class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 6)


def prepared(tmp_path, template, rows=(("a", "b"), ("c", "d")), **data):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in rows))
    content = {"path": str(path), "eval_fraction": 0.5, "max_length": 64, **data}
    config = DataConfig(**content)
    return prepare(config, letter_tokenizer(template), tmp_path / "cache")


def test_a_template_that_prints_the_date_gives_the_same_tokens_every_day(tmp_path, monkeypatch):
    today = prepared(tmp_path, DATED)
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    (tmp_path / "other").mkdir()
    later = prepared(tmp_path / "other", DATED)
    assert later.data_hash == today.data_hash
    assert today.summary.date == later.summary.date == "2024-07-26"
    # From the cache as well.
    assert prepared(tmp_path, DATED).summary == today.summary
    assert prepared(tmp_path, TEMPLATE).summary.date == ""


def test_the_hash_is_that_of_tokens_and_labels(tmp_path):
    rows = (("a", "b"), ("c", "d"))
    first = prepared(tmp_path, None, rows, prompt_format="phi")
    same = prepared(tmp_path, None, rows, prompt_format="stablelm")
    assert same.data_hash == first.data_hash
    assert prepared(tmp_path, TEMPLATE, rows).data_hash != first.data_hash
    # The same tokens, of which others count.
    everything, last = (
        tokenize_rows([TWO_ANSWERS], TokenSettings("plain", 64, on), letter_tokenizer())
        for on in ("all", "last")
    )
    assert everything.ids.tolist() == last.ids.tolist()
    assert everything.content_hash() != last.content_hash()


def test_bytes_and_tokens_of_the_eval_set_by_hand(tmp_path):
    found = prepared(tmp_path, TEMPLATE, [("q1", "é </s>!"), ("q2", "é </s>!")]).summary
    # Letters: é, a space, four of `</s>`, `!`; then `<|end|>` and eos. The é has two bytes.
    assert (found.eval_rows, found.eval_tokens, found.eval_bytes) == (1, 9, 8)
    assert found.train_tokens == 9


def test_bytes_of_a_cut_answer_are_those_that_are_left(tmp_path):
    rows = [("q1", "x" * 80), ("q2", "x" * 80)]
    found = prepared(tmp_path, None, rows, prompt_format="plain").summary
    assert (found.truncated, found.answers_cut) == (2, 2)
    assert (found.eval_tokens, found.eval_bytes) == (62, 62)


def test_the_summary_counts_rows_columns_and_duplicates(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [*(("a", "b"),) * 3, ("c", "d"), ("e", ""), ("f", "g")]
    path.write_text("\n".join(json.dumps({"question": q, "answer": a, "id": 1}) for q, a in rows))
    held_out = tmp_path / "e.jsonl"
    eval_rows = [("A ", "B"), ("f", "other")]
    held_out.write_text("\n".join(json.dumps({"question": q, "answer": a}) for q, a in eval_rows))
    config = DataConfig(path=str(path), eval_path=str(held_out))
    found = prepare(config, letter_tokenizer(), tmp_path).summary
    assert (found.train_rows, found.eval_rows) == (4, 2)
    assert (found.skipped, found.overlapping) == (1, 1)
    assert (found.duplicates, found.duplicates_across) == (2, 1)
    assert (found.used_columns, found.unused_columns) == (("question", "answer"), ("id",))
    assert (found.prompt_format, found.train_on, found.tokenize) == (
        "question_answer", "all", "together",
    )  # fmt: skip


def test_the_eval_hash_is_that_of_what_is_evaluated_alone(tmp_path):
    held_out = tmp_path / "e.jsonl"
    held_out.write_text('{"question": "x", "answer": "y"}\n{"question": "v", "answer": "w"}\n')

    def found(rows=(("a", "b"),), template=None, **data):
        data = {"eval_path": str(held_out), "prompt_format": "plain", **data}
        return prepared(tmp_path, template, rows, **data).summary

    first, others = found(), found(rows=(("c", "d"), ("e", "f")))
    assert first.data_hash != others.data_hash
    assert first.eval_hash == others.eval_hash
    # Another seed orders the rows of the file in another way.
    seeds = [found(split_seed=seed) for seed in range(8)]
    assert len({item.data_hash for item in seeds}) > 1
    assert {item.eval_hash for item in seeds} == {first.eval_hash}
    assert {item.eval_text_hash for item in seeds} == {first.eval_text_hash}
    # A held-out set of the file itself is another with another seed, and with other tags.
    rows = [(f"question {n}", f"answer {n}") for n in range(20)]
    splits = [found(rows, eval_path=None, split_seed=seed) for seed in (0, 1)]
    assert splits[0].eval_hash != splits[1].eval_hash
    assert splits[0].eval_text_hash != splits[1].eval_text_hash
    tags = found(prompt_format="llama2")
    assert tags.eval_hash != first.eval_hash
    assert tags.eval_text_hash == first.eval_text_hash
    # Rows that fit are the same for every length, and those that are cut are not.
    assert found(max_length=32).eval_hash == first.eval_hash
    long = (("q", "x" * 80), ("r", "y" * 80))
    held_out.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in long))
    cut = [found(max_length=length) for length in (32, 40)]
    assert cut[0].eval_text_hash != cut[1].eval_text_hash


def test_tokenizers_share_the_text_that_counts_and_not_the_eval_hash(tmp_path):
    rows = tmp_path / "d.jsonl"
    asked = [{"question": f"q{n}", "answer": "b é"} for n in range(9)]
    rows.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in asked))
    config = DataConfig(path=str(rows), prompt_format="plain")
    letters = prepare(config, letter_tokenizer(), tmp_path / "cache").summary
    pieces = prepare(config, make_tokenizer(), tmp_path / "cache").summary
    assert letters.eval_hash != pieces.eval_hash
    assert letters.eval_text_hash == pieces.eval_text_hash
    assert letters.eval_bytes == pieces.eval_bytes == 4 * letters.eval_rows
    # The same numbers for other words.
    renamed = letter_tokenizer()
    swapped = json.loads(renamed.backend_tokenizer.to_str())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["b"], vocabulary["c"] = vocabulary["c"], vocabulary["b"]
    renamed._tokenizer = Tokenizer.from_str(json.dumps(swapped))
    rows.write_text(rows.read_text().replace("b é", "c é"))
    other = prepare(config, renamed, tmp_path / "cache").summary
    assert other.data_hash == letters.data_hash
    assert other.eval_hash != letters.eval_hash


def bump(path):
    """Another valid file: the first token or span, or a count, is another."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "truncated": content["truncated"] + 1}))
    else:
        array = np.load(path)
        array.flat[0] = not array.flat[0] if array.dtype == bool else array.flat[0] + 1
        np.save(path, array)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [bump, flip, os.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["ids.npy", "trained.npy", "spans.npy", "counts.json"])
def test_damaged_tokens_are_made_anew_with_a_word(tmp_path, caplog, name, damage):
    whole = prepared(tmp_path, TEMPLATE)
    expected = [whole.train[0]["input_ids"].tolist(), whole.train[0]["labels"].tolist()]
    files = sorted((tmp_path / "cache").glob(f"*/{name}"))
    assert len(files) == 2
    for file in files:
        damage(file)
    with caplog.at_level(logging.WARNING, "trial"):
        again = prepared(tmp_path, TEMPLATE)
        assert [record.message for record in caplog.records] == [
            message for message in caplog.messages if "are damaged: they are made anew" in message
        ]
        assert len(caplog.records) == 2
        caplog.clear()
        assert prepared(tmp_path, TEMPLATE).data_hash == whole.data_hash
    assert not caplog.records, "they are whole now"
    assert again.summary == whole.summary
    found = [again.train[0]["input_ids"].tolist(), again.train[0]["labels"].tolist()]
    assert found == expected


def test_tokens_are_on_disk_before_they_get_their_name(tmp_path, monkeypatch):
    synced, fsync, rename = [], os.fsync, os.rename
    named = []

    def renamed(source, target):
        named.append((set(synced), {(source / name).stat().st_ino for name in os.listdir(source)}))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino) or fsync(fd))
    monkeypatch.setattr(os, "rename", renamed)
    prepared(tmp_path, TEMPLATE)
    assert len(named) == 2
    for before, inodes in named:
        assert len(inodes) == 4
        assert inodes <= before
