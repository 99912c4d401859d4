"""Rows into tensors: masks, lengths, hashes and the token cache."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast, default_data_collator

from trial.builtin import model_path
from trial.config.errors import ConfigError
from trial.config.sections import DataConfig
from trial.data import token_cache
from trial.data.prepare import prepare
from trial.data.token_cache import tokenizer_hash
from trial.data.tokens import IGNORE_INDEX, kept_tokens

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(**special):
    """One token a byte (256 of them) and bos 256, eos 257: counts can be worked out by hand."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "<s>", "</s>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    special = {"bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def decode(ids):
    """Text of byte tokens, by the byte-level alphabet alone; printable ASCII stands for itself."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return "".join(letters[i] if i < 256 else "^$"[i - 256] for i in ids.tolist())


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def rows_file(tmp_path):
    rows = [{"question": f"q{n:02}", "answer": f"a{n:02}" + "x" * n} for n in range(20)]
    return write(tmp_path / "rows.jsonl", rows)


def config_for(path, **more):
    return DataConfig(**{"path": path, "prompt_format": "plain", "max_length": 32, **more})


def test_one_row_by_hand(tmp_path):
    path = write(tmp_path / "d.jsonl", [{"question": q, "answer": "ab"} for q in ("cd", "ef")])
    prepared = prepare(
        config_for(path, max_length=8, eval_fraction=0.5), byte_tokenizer(), tmp_path
    )
    question = {row: "cdef"[row * 2 : row * 2 + 2] for row in (0, 1)}
    rows = [prepared.train[0], prepared.eval[0]]
    assert {decode(row["input_ids"][1:3]) for row in rows} == set(question.values())
    for row in rows:
        assert all(tensor.dtype == torch.long for tensor in row.values())
        assert all(tensor.shape == (8,) for tensor in row.values())
        assert decode(row["input_ids"])[0] == "^"
        assert decode(row["input_ids"])[3:] == "ab$$$"  # eos stands in for the missing pad
        assert row["attention_mask"].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
        assert row["labels"][:3].tolist() == [IGNORE_INDEX] * 3
        assert decode(row["labels"][3:6]) == "ab$"
        assert row["labels"][6:].tolist() == [IGNORE_INDEX] * 2


def test_rows_stack_into_batches(rows_file, tmp_path):
    prepared = prepare(config_for(rows_file), byte_tokenizer(), tmp_path)
    batch = default_data_collator([prepared.train[i] for i in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        name: (4, 32) for name in ("input_ids", "attention_mask", "labels")
    }
    assert batch["labels"].dtype == torch.long


def test_sizes_and_completions_of_all_rows(rows_file, tmp_path):
    prepared = prepare(config_for(rows_file), byte_tokenizer(), tmp_path)
    assert (len(prepared.train), len(prepared.eval)) == (18, 2)
    sides = (prepared.train, prepared.eval)
    rows = [side[index] for side in sides for index in range(len(side))]
    answers = sorted(decode(row["labels"][row["labels"] != IGNORE_INDEX]) for row in rows)
    assert answers == [f"a{n:02}" + "x" * n + "$" for n in range(20)]
    for row in rows:
        assert decode(row["input_ids"])[1:4].replace("q", "a") in decode(row["input_ids"])[4:]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        # max_length 8, so the completion keeps at least 2
        ([9, 1, 2], [5, 6, 7], ([9, 1, 2], [5, 6, 7])),
        ([9, 1, 2, 3], [5, 6, 7, 8, 4], ([9, 1, 2, 3], [5, 6, 7, 8])),
        ([9, 1, 2, 3, 4, 5], [5, 6, 7, 8], ([9, 1, 2, 3, 4, 5], [5, 6])),
        ([9, 1, 2, 3, 4, 5, 6], [5, 6, 7], ([9, 2, 3, 4, 5, 6], [5, 6])),
        ([9, *range(1, 30)], [5, 6, 7], ([9, 25, 26, 27, 28, 29], [5, 6])),
        ([9, *range(1, 30)], [5], ([9, 24, 25, 26, 27, 28, 29], [5])),
    ],
)
def test_overlong_rows(prompt, completion, expected):
    assert cut(prompt, completion, 8) == expected


def cut(prompt, completion, max_length):
    """What a row of one prompt and one completion keeps of both."""
    ids = np.array(prompt + completion)
    trained = np.array([False] * len(prompt) + [True] * len(completion))
    kept = kept_tokens(trained, max_length)
    return ids[kept][~trained[kept]].tolist(), ids[kept][trained[kept]].tolist()


def marks(text):
    """`x` stands for a token that counts."""
    return np.array([letter == "x" for letter in text])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # max_length 8: the end is cut, for two tokens that count are left.
        ("..x..x......", [0, 1, 2, 3, 4, 5, 6, 7]),
        # One would be left: the first tokens go, as few as leave two of a quarter.
        ("..x......x..x", [0, 6, 7, 8, 9, 10, 11, 12]),
        ("..x.....x....", [0, 2, 3, 4, 5, 6, 7, 8]),
        # Only one counts at all.
        ("...........x.", [0, 5, 6, 7, 8, 9, 10, 11]),
        # Nowhere do two lie near enough: the first end that has one.
        (".x..............x", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_overlong_rows_of_several_answers(row, expected):
    assert kept_tokens(marks(row), 8).tolist() == expected


@given(st.integers(1, 60), st.integers(1, 60), st.integers(8, 40))
def test_fitting_keeps_bos_order_and_some_completion(prompt_size, completion_size, max_length):
    prompt, completion = list(range(prompt_size)), list(range(100, 100 + completion_size))
    shorter, answer = cut(prompt, completion, max_length)
    assert len(shorter) + len(answer) == min(max_length, prompt_size + completion_size)
    assert shorter[0] == 0
    assert shorter[1:] == prompt[prompt_size - len(shorter) + 1 :]
    assert answer == completion[: len(answer)]
    assert len(answer) >= min(completion_size, max_length // 4)


def test_a_question_longer_than_the_row_is_trained_on_all_the_same(tmp_path):
    rows = [{"question": "q" * n, "answer": "abc"} for n in (2, 50)]
    prepared = prepare(
        config_for(write(tmp_path / "d.jsonl", rows), max_length=16, eval_fraction=0.5),
        byte_tokenizer(),
        tmp_path,
    )
    assert (prepared.summary.truncated, prepared.summary.answers_cut) == (1, 0)
    for side in (prepared.train, prepared.eval):
        assert decode(side[0]["labels"][side[0]["labels"] != IGNORE_INDEX]) == "abc$"


def test_chat_rows_in_the_tokenizers_own_template(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    other = [{"role": "system", "content": "s"}, *turns]
    path = write(tmp_path / "d.jsonl", [{"messages": turns}, {"messages": other}])
    tokenizer = byte_tokenizer(chat_template=TEMPLATE)
    config = DataConfig(path=path, max_length=64, eval_fraction=0.5)
    prepared = prepare(config, tokenizer, tmp_path)
    assert prepared.summary.prompt_format == "chat_template"
    texts = set()
    for side in (prepared.train, prepared.eval):
        row = side[0]
        # The template's own end of turn is the eos: it is not doubled, and no bos is added.
        assert decode(row["labels"][row["labels"] != IGNORE_INDEX]) == "yo$"
        prompt = (row["attention_mask"] == 1) & (row["labels"] == IGNORE_INDEX)
        texts.add(decode(row["input_ids"][prompt]))
    assert {text[:4] for text in texts} == {"<|us", "<|sy"}
    assert all(text.endswith("<|assistant|>") for text in texts)


def test_a_template_that_writes_past_answers_otherwise_still_gives_the_answer(tmp_path):
    template = TEMPLATE.replace("<|assistant|>", "<|assistant|><think>")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = [{"messages": turns}, {"messages": [{"role": "user", "content": "ho"}, turns[1]]}]
    config = DataConfig(path=write(tmp_path / "d.jsonl", rows), max_length=64, eval_fraction=0.5)
    row = prepare(config, byte_tokenizer(chat_template=template), tmp_path).train[0]
    assert decode(row["labels"][row["labels"] != IGNORE_INDEX]) == "yo$"


def test_auto_goes_by_the_family(rows_file, tmp_path):
    config = config_for(rows_file, prompt_format="auto", max_length=64)
    prepared = prepare(config, byte_tokenizer(), tmp_path, model_family="llama Llama-2-7b")
    assert prepared.summary.prompt_format == "llama2"
    assert decode(prepared.train[0]["input_ids"])[1:8].startswith("[INST]")


def test_a_tokenizer_that_ends_every_text_with_eos(tmp_path, rows_file):
    tokenizer = byte_tokenizer()
    plain = prepare(config_for(rows_file), tokenizer, tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    with_eos = prepare(config_for(rows_file), tokenizer, tmp_path)
    assert with_eos.data_hash == plain.data_hash
    for index in range(len(plain.train)):
        torch.testing.assert_close(plain.train[index], with_eos.train[index])


def test_no_eos_is_refused(rows_file, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="eos"):
        prepare(config_for(rows_file), tokenizer, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 16},
        {"prompt_format": "phi"},
        {"split_seed": 1},
        {"eval_fraction": 0.3},
        {"max_train_samples": 3},
        {"max_eval_samples": 1},
    ],
)
def test_the_hash_changes_with_whatever_changes_the_tokens(rows_file, tmp_path, change):
    first = prepare(config_for(rows_file), byte_tokenizer(), tmp_path)
    other = prepare(config_for(rows_file, **change), byte_tokenizer(), tmp_path)
    assert first.data_hash != other.data_hash


def test_the_hash_does_not_change_with_names_and_places(rows_file, tmp_path):
    tokenizer = byte_tokenizer()
    first = prepare(config_for(rows_file), tokenizer, tmp_path / "a")
    moved = tmp_path / "moved.json"
    moved.write_text(json.dumps([json.loads(x) for x in Path(rows_file).read_text().split("\n")]))
    # Traces that an earlier use leaves in a fast tokenizer.
    tokenizer(["a", "bb"], max_length=4, truncation=True)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    tokenizer.name_or_path = "/somewhere/else"
    again = prepare(config_for(str(moved)), tokenizer, tmp_path / "b")
    assert again.data_hash == first.data_hash
    torch.testing.assert_close(again.train[0], first.train[0])
    assert int(again.train[5]["attention_mask"].sum()) > 4


def test_the_tokenizer_hash_knows_content():
    first = byte_tokenizer()
    assert tokenizer_hash(first) == tokenizer_hash(byte_tokenizer())
    assert tokenizer_hash(first) != tokenizer_hash(byte_tokenizer(chat_template=TEMPLATE))
    assert tokenizer_hash(first) != tokenizer_hash(AutoTokenizer.from_pretrained(model_path()))


def test_another_python_process_gives_the_same_hash(rows_file, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    config = config_for(rows_file)
    here = prepare(config, tokenizer, tmp_path / "here").data_hash
    program = (
        "import sys; from pathlib import Path; from transformers import AutoTokenizer;"
        "from trial.builtin import model_path; from trial.config.trial_config import DataConfig;"
        "from trial.data.prepare import prepare;"
        "config = DataConfig.model_validate_json(sys.argv[1]);"
        "tokenizer = AutoTokenizer.from_pretrained(model_path());"
        "print(prepare(config, tokenizer, Path(sys.argv[2])).data_hash)"
    )
    arguments = [sys.executable, "-c", program, config.model_dump_json(), str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == here


def forbidden(*arguments):
    raise AssertionError("tokenised again")


def test_the_second_time_only_files_are_mapped(rows_file, tmp_path, monkeypatch):
    config = config_for(rows_file)
    first = prepare(config, byte_tokenizer(), tmp_path / "cache")
    monkeypatch.setattr(token_cache, "tokenize_rows", forbidden)
    second = prepare(config, byte_tokenizer(), tmp_path / "cache")
    assert second.data_hash == first.data_hash
    assert isinstance(second.train.tokens.ids, np.memmap)
    assert second.train.tokens.ids.dtype == np.int32
    torch.testing.assert_close(second.train[3], first.train[3])


def test_the_default_cache_is_the_users(rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    prepare(config_for(rows_file), byte_tokenizer())
    assert len(list((tmp_path / "xdg" / "gaudi-sweep" / "tokens").iterdir())) == 2


@pytest.mark.parametrize("damaged", ["ids.npy", "trained.npy", "spans.npy", "counts.json"])
def test_damaged_files_are_made_anew(rows_file, tmp_path, damaged):
    config = config_for(rows_file)
    first = prepare(config, byte_tokenizer(), tmp_path / "cache")
    expected = first.train[3]
    for folder in (tmp_path / "cache").iterdir():
        # Replaced, not cut short: a mapped file that shrinks kills whoever maps it.
        whole = (folder / damaged).read_bytes()
        (folder / damaged).unlink()
        (folder / damaged).write_bytes(whole[: len(whole) // 2])
    again = prepare(config, byte_tokenizer(), tmp_path / "cache")
    torch.testing.assert_close(again.train[3], expected)
    assert isinstance(again.train.tokens.ids, np.memmap)


def test_a_cache_that_cannot_be_written_is_done_without(rows_file, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    prepared = prepare(config_for(rows_file), byte_tokenizer(), tmp_path / "file")
    assert len(prepared.train) == 18
    assert "stay in memory" in caplog.text


def write_at_once(config, cache, barrier, answers):
    tokenize_rows = token_cache.tokenize_rows

    def all_at_once(*arguments):
        tokens = tokenize_rows(*arguments)
        barrier.wait(timeout=60)  # nobody stores before everybody has found nothing
        return tokens

    token_cache.tokenize_rows = all_at_once
    prepared = prepare(config, byte_tokenizer(), cache)
    answers.put((prepared.data_hash, prepared.train[3]["input_ids"].tolist()))


def test_processes_that_write_at_once_agree(rows_file, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()
    arguments = (config_for(rows_file), tmp_path / "cache", barrier, answers)
    writers = [context.Process(target=write_at_once, args=arguments) for _ in range(3)]
    for writer in writers:
        writer.start()
    results = [answers.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join(timeout=60)
    assert results[0] == results[1] == results[2]
    names = sorted(item.name for item in (tmp_path / "cache").iterdir())
    assert len(names) == 2
    assert not any(name.endswith(".tmp") for name in names)
