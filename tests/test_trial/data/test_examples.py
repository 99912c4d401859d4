"""Files into rows, rows into two sides; and what is refused, with its place."""

import csv
import json
import random
import string

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trial.config.errors import ConfigError
from trial.config.sections import DataConfig
from trial.data.examples import Row, pair, read_rows
from trial.data.messages import Message
from trial.data.split import hold_out, read_split

PAIRS = [
    ("Why?", "Because."),
    ('Say "a;b", twice', "line one\nline two"),
    ("Où ça ?", "Là-bas, |ici|"),
]


def pairs_of(config, which="train"):
    rows = read_rows(config, which).rows
    return [(row.turns[-1].content, row.completion) for row in rows]


def refusals(config, which="train"):
    with pytest.raises(ConfigError) as caught:
        read_rows(config, which)
    return caught.value.problems


def write_csv(path, delimiter, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([("question", "answer"), *PAIRS])
    return str(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("given", [True, False])
def test_csv_of_every_delimiter(tmp_path, delimiter, given):
    path = write_csv(tmp_path / "data.csv", delimiter)
    assert pairs_of(DataConfig(path=path, delimiter=delimiter if given else None)) == PAIRS


def test_csv_with_a_byte_order_mark_and_an_odd_ending(tmp_path):
    path = write_csv(tmp_path / "data.dat", ",", encoding="utf-8-sig")
    assert pairs_of(DataConfig(path=path, format="csv")) == PAIRS
    (problem,) = refusals(DataConfig(path=path))
    assert "data.format" in problem.expected


def objects():
    return [{"question": question, "answer": answer} for question, answer in PAIRS]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows}])
def test_json(tmp_path, wrap):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(wrap(objects())), encoding="utf-8")
    assert pairs_of(DataConfig(path=str(path))) == PAIRS


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json"])
def test_jsonl_by_any_ending(tmp_path, ending):
    assert pairs_of(DataConfig(path=write_jsonl(tmp_path / f"data.{ending}", objects()))) == PAIRS


def test_parquet(tmp_path):
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(objects()), path)
    assert pairs_of(DataConfig(path=str(path))) == PAIRS


def test_saved_datasets_and_their_splits(tmp_path):
    saved = datasets.Dataset.from_list(objects())
    saved.save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict({"train": saved, "test": saved.select([2])})
    both.save_to_disk(tmp_path / "two")
    assert pairs_of(DataConfig(path=str(tmp_path / "one"))) == PAIRS
    apart = DataConfig(path=str(tmp_path / "two"), eval_split="test")
    assert pairs_of(apart) == PAIRS
    assert pairs_of(apart, "eval") == PAIRS[2:]
    (problem,) = refusals(DataConfig(path=str(tmp_path / "two"), eval_split="tests"), "eval")
    assert (problem.key, problem.near) == ("data.eval_split", "test")
    (problem,) = refusals(DataConfig(path=str(tmp_path / "two"), split="trian"))
    assert (problem.key, problem.near) == ("data.split", "train")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "completion": "c"}, [("p", "c")]),
        ({"instruction": "i", "output": "o"}, [("i", "o")]),
        ({"instruction": "i", "input": "x", "output": "o"}, [("i\n\nx", "o")]),
        ({"instruction": "i", "input": "", "output": "o"}, [("i", "o")]),
        ({"instruction": "i", "input": None, "output": "o"}, [("i", "o")]),
        ({"Question": "q", "Answer": "a"}, [("q", "a")]),
        ({"question": "q", "answer": ["a", "b"]}, [("q", "a"), ("q", "b")]),
        ({"id": 7, "question": "q", "response": "r"}, [("q", "r")]),
        ({"question": "q", "answer": 3}, [("q", "3")]),
        ({"question": "q", "answer": ["a", 2.5, "a"]}, [("q", "a"), ("q", "2.5")]),
        ({"question": 17, "answer": True}, [("17", "true")]),
    ],
)
def test_columns_by_their_usual_names(tmp_path, record, expected):
    assert pairs_of(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", [record]))) == expected


def test_columns_by_configuration(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"q": "a", "gold": "b", "question": "c"}])
    config = DataConfig(path=path, prompt_column="q", completion_column="gold")
    assert pairs_of(config) == [("a", "b")]
    (problem,) = refusals(config.model_copy(update={"completion_column": "golt"}))
    assert (problem.key, problem.got, problem.near) == ("data.completion_column", "'golt'", "gold")


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
ASKED_AND_ANSWERED = (Message("user", "u"), Message("assistant", "a"))
SHAREGPT = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("column", "messages", "expected"),
    [
        (
            "messages",
            [*CHAT, {"role": "assistant", "content": "a"}],
            Row((Message("system", "s"), *ASKED_AND_ANSWERED), "chat"),
        ),
        ("conversations", SHAREGPT, Row(ASKED_AND_ANSWERED, "chat")),
        # What follows the last answer is not trained on.
        ("messages", [*SHAREGPT, *CHAT[1:]], Row(ASKED_AND_ANSWERED, "chat")),
    ],
)
def test_chat_messages(tmp_path, column, messages, expected):
    path = write_jsonl(tmp_path / "d.jsonl", [{column: messages}])
    assert read_rows(DataConfig(path=path)).rows == [expected]
    assert read_rows(DataConfig(path=path, messages_column=column)).rows == [expected]


@pytest.mark.parametrize(
    "empty",
    [
        {"question": "q", "answer": " "},
        {"question": "", "answer": "a"},
        {"question": "q", "answer": None},
        {"question": "q", "answer": []},
    ],
)
def test_rows_without_a_prompt_or_completion_are_counted(tmp_path, empty):
    path = write_jsonl(tmp_path / "d.jsonl", [empty, *objects()])
    read = read_rows(DataConfig(path=path))
    assert (len(read.rows), read.skipped) == (3, 1)
    (problem,) = refusals(DataConfig(path=write_jsonl(tmp_path / "e.jsonl", [empty])))
    assert problem.got == "1 rows, each with an empty one"


GOOD = '{"question": "q", "answer": "a"}\n'
CELL = "column 'answer'"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("d.jsonl", GOOD + "{broken\n", ["d.jsonl line 2", "JSON object", "'{broken'"]),
        ("d.jsonl", GOOD + "[1]\n", ["d.jsonl line 2", "an object", "[1]"]),
        ("d.jsonl", GOOD + '{"question": "q", "answer": {"a": 3}}\n', ["line 2", CELL, "(dict)"]),
        ("d.jsonl", GOOD + '{"question": "q"}\n', ["line 2", CELL]),
        (
            "d.jsonl",
            GOOD + '{"question": "q", "answer": ["a", [1]]}',
            ["line 2", CELL, "[1] (list)"],
        ),
        ("d.json", '[\n{"question": "q"},\n{"x" 1}]', ["d.json line 3", "JSON"]),
        ("d.json", '{"rows": []}', ["a list of rows", "an object of rows"]),
        ("d.json", '"text"', ["a list of rows"]),
        ("d.json", "[]", ["at least one row"]),
        ("d.csv", "question,answer\n", ["at least one row"]),
        ("d.csv", 'question,answer\n"a\nb",c\nd,e,f\n', ["line 4", "2 columns", "got 3"]),
        ("d.csv", 'question,answer\n"a"b,c\n', ["d.csv", "CSV"]),
        ("d.csv", "", ["which is empty"]),
        ("d.csv", "question,anser\nq,a\n", ["data.completion_column", "did you mean answer"]),
        ("d.parquet", "PAR", ["a Parquet file"]),
        ("d.jsonl", '{"messages": "hello"}', ["line 1", "a list of messages", "'hello'"]),
        ("d.jsonl", '{"messages": ["hello", {}]}', ["role and content", "'hello'"]),
        (
            "d.jsonl",
            '{"messages": [{"role": "narrator", "content": "x"}]}',
            ["a role of", "'narrator'"],
        ),
        ("d.jsonl", '{"messages": [{"role": "user", "content": 1}]}', ["is text", "1 (int)"]),
    ],
)
def test_what_is_refused_and_where(tmp_path, name, content, parts):
    (tmp_path / name).write_text(content, encoding="utf-8")
    problems = refusals(DataConfig(path=str(tmp_path / name)))
    text = "\n".join(map(str, problems))
    for part in parts:
        assert part in text


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"question,answer\nq,a\nq,caf\xe9\n")
    (problem,) = refusals(DataConfig(path=str(tmp_path / "d.csv")))
    assert "line 3: UTF-8" in problem.expected
    assert problem.got == "0xe9"


def test_several_wrong_cells_are_reported_at_once(tmp_path):
    rows = [{"question": "q", "answer": {"number": number}} for number in range(30)]
    problems = refusals(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows)))
    assert 1 < len(problems) <= 10
    assert "line 1 " in problems[0].expected


@pytest.mark.parametrize("key", ["split", "eval_split"])
def test_a_file_has_no_splits(tmp_path, key):
    path = write_jsonl(tmp_path / "d.jsonl", objects())
    config = DataConfig(path=path, **{key: "validation"})
    (problem,) = refusals(config, "eval" if key == "eval_split" else "train")
    assert problem.key == f"data.{key}"


def test_missing_paths(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", objects())
    (problem,) = refusals(DataConfig(path=str(tmp_path / "trian.jsonl")))
    assert problem.near.endswith("train.jsonl")
    (problem,) = refusals(DataConfig(path=str(tmp_path / "none" / "x.csv")))
    assert "folder does not exist" in problem.expected
    (tmp_path / "empty").mkdir()
    (problem,) = refusals(DataConfig(path=str(tmp_path / "empty")))
    assert "which is empty" in problem.got
    (problem,) = refusals(DataConfig(path=str(tmp_path), format="csv"))
    assert "the folder" in problem.got
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (problem,) = refusals(DataConfig(path="train"))
    assert "HF_HUB_OFFLINE" in problem.expected
    (problem,) = refusals(DataConfig(path="builtin:python-dogs"))
    assert problem.near == "builtin:python-docs"
    (problem,) = refusals(DataConfig(path="train.jsonl", eval_path="evil.jsonl"), "eval")
    assert problem.key == "data.eval_path"


questions = st.lists(
    st.tuples(st.text(string.ascii_letters, min_size=1, max_size=2), st.sampled_from("abc")),
    max_size=40,
)


def rows_of(pairs):
    return [pair(question, answer) for question, answer in pairs]


@settings(deadline=None)
@given(questions, st.floats(0.01, 0.99), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_split_holds_out_whole_prompts_by_content_alone(pairs, fraction, seed, shuffler):
    rows = rows_of(pairs)
    train, held_out = hold_out(rows, fraction, seed)
    assert sorted(row.digest() for row in train + held_out) == sorted(row.digest() for row in rows)
    assert not {row.prompt_key for row in train} & {row.prompt_key for row in held_out}
    if len({question for question, _ in pairs}) > 1:
        assert train
        assert held_out
    shuffler.shuffle(rows)
    assert hold_out(rows, fraction, seed) == (train, held_out)


def test_the_split_has_its_size_and_follows_its_seed():
    rows = rows_of([(str(number), "a") for number in range(1000)])
    sides = [{row.prompt_key for row in hold_out(rows, 0.1, seed)[1]} for seed in (0, 1)]
    assert [len(side) for side in sides] == [100, 100]
    # Two independent tenths share about a tenth.
    assert len(sides[0] & sides[1]) < 30


def test_the_eval_set_is_the_same_however_many_rows_are_trained_on(tmp_path):
    rows = [{"question": f"q{number}", "answer": "a"} for number in range(50)]
    config = DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows), eval_fraction=0.2)
    whole = read_split(config)
    few = read_split(config.model_copy(update={"max_train_samples": 5, "max_eval_samples": 4}))
    assert (len(whole.train), len(whole.eval)) == (40, 10)
    assert few.train == whole.train[:5]
    assert few.eval == whole.eval[:4]
    random.Random(0).shuffle(rows)
    again = read_split(config.model_copy(update={"path": write_jsonl(tmp_path / "e.jsonl", rows)}))
    assert again == whole


def test_prompts_of_a_separate_eval_set_are_taken_out_of_training(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", objects())
    held_out = write_jsonl(tmp_path / "eval.jsonl", [{"question": "Why?", "answer": "other"}])
    split = read_split(DataConfig(path=train, eval_path=held_out))
    assert (len(split.train), len(split.eval), split.overlapping) == (2, 1, 1)
    with pytest.raises(ConfigError, match="not in the eval set"):
        read_split(DataConfig(path=train, eval_path=train))


def test_answers_to_one_prompt_are_held_out_whole(tmp_path):
    answers = [*"abcdefghij", "a", "a"]
    rows = [{"question": "q", "answer": answer} for answer in answers]
    split = read_split(DataConfig(path=write_jsonl(tmp_path / "d.jsonl", rows), eval_fraction=0.2))
    train, held_out = ({row.completion for row in side} for side in (split.train, split.eval))
    assert train | held_out == set(answers)
    assert not train & held_out
    assert len(split.train) + len(split.eval) == len(answers)


@pytest.mark.parametrize("count", [1, 10])
def test_one_row_again_and_again_is_trained_and_evaluated_on(tmp_path, count):
    path = write_jsonl(tmp_path / "d.jsonl", [{"question": "q", "answer": "a"}] * count)
    split = read_split(DataConfig(path=path))
    assert [len(split.train), len(split.eval)] == [count, 1]
    assert split.eval[0] == split.train[0]


def test_rows_that_begin_with_one_greeting_have_prompts_of_their_own(tmp_path):
    """A greeting answers nothing; by it alone, all such rows would be held out or none."""
    said = [["gpt", "How can I help?"], ["human", "q{}"], ["gpt", "a{}"]]
    chats = [[{"from": f, "value": v.format(n)} for f, v in said] for n in range(20)]
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"conversations": chat} for chat in chats]))
    config = DataConfig(path=str(path), eval_fraction=0.2)
    split = read_split(config)
    assert (len(split.train), len(split.eval)) == (16, 4)
    assert {m.trained for row in split.train for m in row.messages} == {True}
    assert len({row.prompt_key for row in split.train + split.eval}) == 20


@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ({"value": "A", "aliases": ["B"]}, ["A"]),
        ({"text": ["A", "A", "B"], "answer_start": [1, 1, 2]}, ["A", "B"]),
        ([{"text": "A", "answer_start": 1}, {"text": "B"}], ["A", "B"]),
        ([{"value": 3}, "B"], ["3", "B"]),
    ],
)
def test_answers_that_are_objects(tmp_path, cell, answers):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": cell}))
    assert [answer for _, answer in pairs_of(DataConfig(path=str(path)))] == answers


def test_an_answer_that_is_an_unknown_object_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": {"spans": ["A"]}}))
    (problem,) = refusals(DataConfig(path=str(path)))
    assert "line 1 column 'answer'" in problem.expected
    assert "`text` or `value`" in problem.expected


def test_a_system_message_may_be_parts(tmp_path):
    path = tmp_path / "d.jsonl"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    cells = ([{"text": "Be "}, {"text": "kind."}], {"parts": [{"text": "Be kind."}]}, "Be kind.")
    path.write_text("\n".join(json.dumps({"system": s, "messages": said}) for s in cells))
    rows = read_rows(DataConfig(path=str(path))).rows
    assert [row.messages[0] for row in rows] == [Message("system", "Be kind.")] * 3


@pytest.mark.parametrize("as_messages", [True, False])
def test_context_and_history_of_a_conversational_pair(tmp_path, as_messages):
    question = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    record = {
        "prompt": question if as_messages else "q",
        "completion": [{"role": "assistant", "content": "a"}],
        "context": "c",
        "history": [["before", "then"]],
    }
    path = write_jsonl(tmp_path / "d.jsonl", [record])
    (row,) = read_rows(DataConfig(path=str(path))).rows
    texts = [message.content for message in row.messages if message.role != "system"]
    assert texts == ["before", "then", "q\n\nc", "a"]
    assert [message.role for message in row.messages][:1] == ["system" if as_messages else "user"]


def test_a_context_that_no_question_follows_is_the_question(tmp_path):
    record = {"prompt": [{"role": "system", "content": "s"}], "completion": "a", "context": "c"}
    path = write_jsonl(tmp_path / "d.jsonl", [record])
    (row,) = read_rows(DataConfig(path=str(path))).rows
    assert [message.content for message in row.messages] == ["s", "c", "a"]
