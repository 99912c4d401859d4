"""Messages from cells of the public formats, and what is refused."""

import json

import pytest

from trial.data.messages import (
    Message,
    WrongCellError,
    read_history,
    read_messages,
    read_tools,
    text_of,
    unread_keys,
)


def message(**fields):
    (found,) = read_messages([fields], "messages")
    return found


CALL = {"name": "f", "arguments": {"x": 1}}
WHOLE = {"type": "function", "function": CALL}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"role": "developer", "content": "s"}, Message("system", "s")),
        ({"from": "human", "value": "u"}, Message("user", "u")),
        ({"from": "bard", "value": "a"}, Message("assistant", "a")),
        ({"from": "observation", "value": "r"}, Message("tool", "r")),
        ({"role": "Assistant ", "content": "a"}, Message("assistant", "a")),
        ({"from": "function-response", "value": "r"}, Message("tool", "r")),
        ({"role": "model", "parts": [{"text": "a"}, {"text": "b"}]}, Message("assistant", "ab")),
        ({"role": "assistant", "content": "a", "weight": 0}, Message("assistant", "a", False)),
        ({"role": "assistant", "content": "a", "loss": False}, Message("assistant", "a", False)),
        ({"role": "assistant", "content": "a", "weight": 1.0}, Message("assistant", "a")),
        ({"role": "assistant", "content": "a", "weight": None}, Message("assistant", "a")),
        ({"role": "assistant", "content": "a", "train": False}, Message("assistant", "a", False)),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, Message("user", "ab")),
    ],
)
def test_roles_weights_and_parts(fields, expected):
    assert message(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "assistant", "content": None, "tool_calls": [WHOLE]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "assistant", "content": None, "function_call": CALL},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"role": "tool_call", "content": json.dumps(CALL)},
    ],
)
def test_tool_calls_of_every_notation_are_one(fields):
    found = message(**fields)
    assert (found.role, found.content) == ("assistant", "")
    assert json.loads(found.extra) == {"tool_calls": [WHOLE]}


def test_what_templates_read_besides_is_kept():
    found = message(role="tool", content="r", tool_call_id="c1", name="f")
    assert json.loads(found.extra) == {"name": "f", "tool_call_id": "c1"}
    thoughtful = message(role="assistant", content="a", reasoning_content="so")
    assert json.loads(thoughtful.extra) == {"reasoning_content": "so"}


@pytest.mark.parametrize(
    "tools", [[WHOLE], [CALL], json.dumps([CALL]), json.dumps(CALL), [{"function": CALL}]]
)
def test_tools_of_every_notation(tools):
    (tool,) = json.loads(read_tools(tools, "tools"))
    assert tool["function"] == CALL


@pytest.mark.parametrize("tools", [None, "", " ", [], "[]"])
def test_no_tools(tools):
    assert read_tools(tools, "tools") == ""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"role": "user", "content": None}, "content is text"),
        ({"role": ["user"], "content": "a"}, "a role of"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "no images"),
        ({"role": "assistant", "content": "a", "weight": 0.5}, "weight is 0 or 1"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, "tool calls with"),
        ({"role": "user", "content": "half \ud83d"}, "at character 6"),
        ({"role": "tool", "content": "r", "name": "\ud800"}, "surrogate"),
    ],
)
def test_what_is_refused(fields, expected):
    with pytest.raises(WrongCellError) as caught:
        message(**fields)
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (2.5, "2.5"), (True, "true"), (None, ""), (float("nan"), ""), ("a", "a")],
)
def test_cells_as_text(value, text):
    assert text_of(value, "answer") == text


def test_messages_as_json_text():
    text = json.dumps([{"role": "user", "content": "u"}])
    assert read_messages(text, "messages") == (Message("user", "u"),)


@pytest.mark.parametrize(
    "cell", [["text"], [["only a question"]], [["q", 3]], "text", {"q": "a"}, [["q", "a"], "text"]]
)
def test_a_history_of_anything_but_turns_is_refused(cell):
    with pytest.raises(WrongCellError):
        read_history(cell, "history")


@pytest.mark.parametrize("cell", [None, [], "", "[]", float("nan")])
def test_a_history_may_be_empty(cell):
    assert read_history(cell, "history") == ()


@pytest.mark.parametrize("text", ["Hello.", "Said she:\n\nHuman: a", "", "Response: a"])
def test_a_text_without_speakers_is_no_conversation(text):
    with pytest.raises(WrongCellError, match="transcript"):
        read_messages(text, "chat")


def test_keys_of_a_turn_that_nothing_reads():
    assert unread_keys({"input": "q", "output": "a", "id": 3, "score": None}) == ["id"]
    assert unread_keys({"role": "user", "content": "q", "input": "x"}) == ["input"]
    assert unread_keys({"role": "user", "content": "q", "masked": False, "tags": []}) == ["masked"]
