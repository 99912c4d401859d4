"""Which columns rows are made of: two candidates are refused, and what is not used is listed."""

import json

import pytest

from trial.config.errors import ConfigError
from trial.config.sections import DataConfig
from trial.data.columns import find_columns
from trial.data.examples import read_rows


def columns(known, first=None, **data):
    return find_columns(known.split(), DataConfig(**data), "d.jsonl", [first] if first else ())


def problem(known, first=None, **data):
    with pytest.raises(ConfigError) as caught:
        columns(known, first, **data)
    (found,) = caught.value.problems
    return found


@pytest.mark.parametrize(
    ("known", "key", "named"),
    [
        ("question prompt answer", "data.prompt_column", ("question", "prompt")),
        ("question input answer", "data.prompt_column", ("question", "input")),
        ("inputs targets question answer", "data.prompt_column", ("question", "inputs")),
        ("question answer output", "data.completion_column", ("answer", "output")),
        ("prompt completion messages", "data.messages_column", ("messages", "prompt and")),
        ("messages conversations", "data.messages_column", ("messages", "conversations")),
        ("question answer system system_prompt", "data.system_column", ("system", "system_prompt")),
        ("instruction input context output", "data.context_column", ("context", "input")),
    ],
)
def test_two_candidates_are_refused_by_their_names_and_the_key_that_decides(known, key, named):
    found = problem(known)
    assert found.key == key
    assert all(name in found.expected for name in named)


@pytest.mark.parametrize(
    ("known", "data", "expected"),
    [
        ("question prompt answer", {"prompt_column": "prompt"}, ("prompt", "answer", "")),
        ("question input answer", {"prompt_column": "question"}, ("question", "answer", "")),
        ("question input answer", {"context_column": "input"}, ("question", "answer", "input")),
        ("question answer output", {"completion_column": "output"}, ("question", "output", "")),
        ("instruction input output", {}, ("instruction", "output", "input")),
        ("instruction input output", {"context_column": ""}, ("instruction", "output", "")),
        ("question context answers", {}, ("question", "answers", "context")),
        ("question context answers", {"context_column": ""}, ("question", "answers", "")),
        ("Context Response", {}, ("Context", "Response", "")),
        ("input output", {}, ("input", "output", "")),
        ("input output", {"context_column": ""}, ("input", "output", "")),
        ("inputs targets task", {}, ("inputs", "targets", "")),
        ("inputs targets task", {"prompt_column": "inputs"}, ("inputs", "targets", "")),
        ("user assistant", {}, ("user", "assistant", "")),
        ("prompt response user", {}, ("prompt", "response", "")),
        ("instruction output text", {}, ("instruction", "output", "")),
        ("prompt chosen rejected", {"completion_column": "chosen"}, ("prompt", "chosen", "")),
    ],
)
def test_pairs(known, data, expected):
    found = columns(known, **data)
    assert found.kind == "pair"
    assert (found.prompt, found.completion, found.context) == expected


@pytest.mark.parametrize(
    ("known", "data", "kind", "used"),
    [
        ("prompt prompt_id messages", {}, "chat", ("messages",)),
        ("id conversations system", {}, "chat", ("system", "conversations")),
        ("id conversations system", {"system_column": ""}, "chat", ("conversations",)),
        ("prompt completion chat", {"messages_column": "chat"}, "chat", ("chat",)),
        ("text label", {}, "text", ("text",)),
        ("path content license", {}, "text", ("content",)),
        ("content text", {}, "text", ("text",)),
        ("problem solution messages", {}, "chat", ("messages",)),
        ("problem solution type", {}, "pair", ("problem", "solution")),
        ("id dialogue summary", {}, "pair", ("dialogue", "summary")),
        ("question passage answer", {}, "pair", ("question", "passage", "answer")),
        ("content id", {"prompt_column": "", "completion_column": "content"}, "text", ("content",)),
    ],
)
def test_other_shapes(known, data, kind, used):
    found = columns(known, **data)
    assert (found.kind, set(found.used())) == (kind, set(used))


@pytest.mark.parametrize(
    ("known", "first", "key"),
    [
        ("prompt chosen rejected", None, "data.completion_column"),
        ("chosen rejected", None, "data.messages_column"),
        ("prompt completion label", {"label": True}, "data.completion_column"),
    ],
)
def test_preference_sets_are_refused_with_a_way_on(known, first, key):
    found = problem(known, first)
    assert found.key == key
    assert "out of scope" in found.expected


@pytest.mark.parametrize(
    ("first", "way"),
    [
        ({"id": 1, "dialog": ["Hi", "Hello"]}, "`data.messages_column: dialog`"),
        ({"id": 1, "turns": [{"x": 1}, {"x": 2}]}, "`data.messages_column: turns`"),
        ({"id": 1, "story": "Once."}, "`data.prompt_column: ''`"),
    ],
)
def test_a_table_of_no_known_shape_is_refused_with_a_way_on(first, way):
    with pytest.raises(ConfigError) as caught:
        columns(" ".join(first), first)
    assert way in caught.value.problems[0].expected


HISTORY = [["Hey", "Hello"]]


@pytest.mark.parametrize(
    ("cells", "data", "used"),
    [
        ([[], HISTORY], {}, "history"),
        ([None, json.dumps(HISTORY)], {}, "history"),
        (
            [[{"role": "user", "content": "Hey"}, {"role": "assistant", "content": "Hi"}]],
            {},
            "history",
        ),
        ([[], HISTORY], {"history_column": ""}, ""),
        ([[], None, ""], {}, ""),
        (["In 1492 it began."], {}, ""),
        ([3], {}, ""),
        ([HISTORY], {"history_column": "history"}, "history"),
    ],
)
def test_a_history_is_one_where_it_holds_turns(cells, data, used):
    records = [{"prompt": "q", "response": "a", "history": cell} for cell in cells]
    assert (
        find_columns(("prompt", "response", "history"), DataConfig(**data), "", records).history
        == used
    )


def test_a_label_that_is_no_preference_is_only_not_used():
    assert columns("prompt completion label", {"label": 3}).completion == "completion"


@pytest.mark.parametrize(("key", "near"), [("system_column", "sys"), ("context_column", "about")])
def test_a_configured_column_must_exist(key, near):
    found = problem("question answer sys about", **{key: near + "t"})
    assert (found.key, found.near) == (f"data.{key}", near)


@pytest.mark.parametrize(
    ("known", "data", "key"),
    [
        ("messages about", {"context_column": "about"}, "data.context_column"),
        ("messages about", {"history_column": "nowhere"}, "data.history_column"),
        (
            "messages question answer",
            {"messages_column": "messages", "prompt_column": "question"},
            "data.prompt_column",
        ),
        ("text label", {"system_column": "label"}, "data.system_column"),
        ("text label", {"prompt_column": "", "context_column": "label"}, "data.context_column"),
        ("message_id parent_id role text about", {"system_column": "about"}, "data.system_column"),
    ],
)
def test_a_configured_column_of_which_no_row_is_made_is_refused(known, data, key):
    assert problem(known, **data).key == key


def test_a_column_may_be_left_out_of_a_shape_that_has_none():
    assert columns("messages context", context_column="", history_column="").kind == "chat"


def test_versions_before_took_the_first_candidate_and_no_context():
    earlier = {"tokenize": "apart", "train_on": "last"}
    found = columns("question prompt answer output context system messages", **earlier)
    assert found.used() == ("question", "answer")
    assert columns("instruction input output system", **earlier).context == "input"


def test_columns_and_keys_of_messages_that_nothing_reads_are_listed(tmp_path):
    message = {"role": "user", "content": "q", "id": 7, "lang": None}
    answer = {"role": "assistant", "content": "a", "mood": "calm"}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"messages": [message, answer], "source": "x", "tools": []}))
    read = read_rows(DataConfig(path=str(path)))
    assert read.used_columns == ("messages", "tools")
    assert read.unused_columns == ("source", "messages.id", "messages.mood")
