"""Messages of a conversation, read from cells of the field's public formats. Torch-free.

OpenAI (`role`, `content`, `tool_calls`, `weight`), ShareGPT (`from`, `value`), Gemini (`role`,
`parts`), turns as pairs (`input`, `output`), texts alone that take turns, transcripts (`Human:
...`), and the message trees of OpenAssistant (`parent_id`, `role`, `text`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
"""Role by its name in chat records, in small letters: OpenAI's, ShareGPT's (`human`, `gpt`,
`observation`, `function_call`), OpenAssistant's (`prompter`) and those of Llama's and Gemma's
templates."""
TURN_PAIRS = (
    ("input", "output"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("query", "response"),
)
"""Keys of an object that holds a question and its answer, as one turn of a conversation."""
_CALLS = ("function_call", "tool_call")
"""Roles whose content is the call itself, as JSON."""
_WEIGHTS = ("weight", "trained", "train", "training", "loss")
"""Keys of a message that say whether it counts in the loss."""
_NOTHING: tuple[object, ...] = (None, "", [], {})
_PASSED_ON = ("name", "tool_call_id", "reasoning_content", "thinking")
"""Keys of a message that chat templates read, besides role, content and tool calls."""
MESSAGE_KEYS = frozenset(
    (
        *("role", "from", "content", "value", "parts", "tool_calls", "function_call"),
        *_WEIGHTS,
        *_PASSED_ON,
    )
)
"""Keys of a message with a role that are read."""
_TRANSCRIPT = re.compile(
    r"(?:\A\s*|\n[ \t]*\n\s*|\s*(?=### ?))(?:### ?)?"
    r"(system|human|user|assistant|function response):[ \t]*",
    re.IGNORECASE,
)
"""Where a message of a transcript begins: at the start, after a blank line, or with `###`."""
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str
    trained: bool = True
    """Whether an assistant's message counts in the loss; without meaning for other roles."""
    extra: str = ""
    """JSON object of further keys for the chat template (`tool_calls`, `name`, ...), or empty."""


class WrongCellError(Exception):
    """A cell that cannot be read: its column, what was expected, and what is there."""

    def __init__(self, column: str, expected: str, got: object) -> None:
        super().__init__(column, expected)
        self.column, self.expected = column, expected
        self.got = f"{got!r:.60} ({type(got).__name__})"


def text_of(value: Any, column: str, expected: str = "text or a number") -> str:
    """A cell as text: numbers and truth values as JSON writes them, empty for null and NaN.

    Raises:
        WrongCellError: it is something else, or text that no tokenizer takes.
    """
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise WrongCellError(column, expected, value)
    if not value.isascii() and (found := _SURROGATE.search(value)):
        rule = f"text in Unicode, without half a surrogate pair at character {found.start() + 1}"
        raise WrongCellError(column, rule, value)
    return value


def read_messages(value: Any, column: str) -> tuple[Message, ...]:
    """The messages of a cell: a list of objects or of texts, its JSON text, or a transcript.

    Texts are the user's and the assistant's in turn.

    Raises:
        WrongCellError: it is no list of messages with a known role and text.
    """
    if isinstance(value, str):
        value = _parsed(value) if value.lstrip().startswith("[") else _transcript(value)
    if not isinstance(value, list):
        rule = "a list of messages, or a transcript that begins with `Human:` or `User:`"
        raise WrongCellError(column, rule, value)
    if value and all(isinstance(text, str) for text in value):
        roles: tuple[Role, Role] = ("user", "assistant")
        return tuple(Message(roles[n % 2], text_of(t, column)) for n, t in enumerate(value))
    return tuple(message for one in value for message in _messages(one, column))


def read_history(value: Any, column: str) -> tuple[Message, ...]:
    """Turns that stand before a prompt: a list of pairs of texts, or messages; empty for none.

    Raises:
        WrongCellError: it is something else.
    """
    value = _parsed(value) if isinstance(value, str) else value
    if not value or value != value:
        return ()
    if isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        value = [text for pair in value for text in pair]
        if not all(isinstance(text, str) for text in value):
            raise WrongCellError(
                column, "pairs of a prompt and its answer, both of them text", value
            )
    elif not is_message_list(value):
        rule = (
            "a list of pairs of a prompt and its answer (`data.history_column: ''` leaves it out)"
        )
        raise WrongCellError(column, rule, value)
    return read_messages(value, column)


def is_message_list(value: Any) -> bool:
    """Whether a cell holds messages rather than text or texts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and (_role_name(m) is not None or _turn(m)) for m in value)
    )


def _transcript(text: str) -> Any:
    """The messages of a text like `Human: ... Assistant: ...`; the text itself where it is none."""
    begun = list(_TRANSCRIPT.finditer(text))
    if not begun or begun[0].start():
        return text
    ends = [*(found.start() for found in begun[1:]), len(text)]
    return [
        {"role": found[1].replace(" ", "_"), "content": text[found.end() : end].strip()}
        for found, end in zip(begun, ends, strict=True)
    ]


def _role_name(message: Mapping[str, Any]) -> Any:
    name = message.get("role") or message.get("from")
    return name.strip().lower().replace("-", "_") if isinstance(name, str) else name


def _turn(message: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of a question and its answer, of an object that has no role."""
    return next((pair for pair in TURN_PAIRS if all(key in message for key in pair)), None)


def unread_keys(message: Mapping[str, Any]) -> list[str]:
    """The keys of a message, or of a turn that is a pair, that have something and are not read."""
    pair = _turn(message) if _role_name(message) is None else None
    read = MESSAGE_KEYS if pair is None else {*pair, "system", *_WEIGHTS}
    return [key for key, value in message.items() if key not in read and value not in _NOTHING]


def _messages(message: object, column: str) -> Iterator[Message]:
    """The message of an object; of a turn that is a pair, both (and its system message)."""
    if not isinstance(message, Mapping):
        raise WrongCellError(column, "messages that are objects of role and content", message)
    if _role_name(message) is None and (pair := _turn(message)):
        if system := text_of(message.get("system"), column):
            yield Message("system", system)
        yield Message("user", text_of(message[pair[0]], column))
        yield Message("assistant", text_of(message[pair[1]], column), _is_trained(message, column))
    else:
        yield _message(message, column)


def _message(message: Mapping[str, Any], column: str) -> Message:
    name = _role_name(message)
    if not isinstance(name, str) or name not in ROLES:
        got = message if name is None else message.get("role") or message.get("from")
        raise WrongCellError(column, f"a role of {', '.join(ROLES)}", got)
    found = (message.get(key) for key in ("content", "value", "parts"))
    content = next((value for value in found if value is not None), None)
    extra: dict[str, Any] = {}
    calls = message.get("tool_calls") or _single_call(message.get("function_call"))
    if name in _CALLS:
        calls, content = _parsed(content), None
        calls = calls if isinstance(calls, list) else [calls]
    if calls:
        extra["tool_calls"] = [_tool_call(call, column) for call in calls]
    extra |= {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    text = "" if content is None and calls else content_of(content, column)
    encoded = json.dumps(extra, ensure_ascii=False) if extra else ""
    text_of(encoded, column)
    return Message(ROLES[name], text, _is_trained(message, column), encoded)


def content_of(content: Any, column: str) -> str:
    """Text, or the texts of a list of parts one after another.

    Raises:
        WrongCellError: it is something else, or a part is no text.
    """
    if isinstance(content, list):
        return "".join(_part(part, column) for part in content)
    if not isinstance(content, str):
        raise WrongCellError(column, "a message whose content is text", content)
    return text_of(content, column)


def _part(part: Any, column: str) -> str:
    if isinstance(part, Mapping) and part.get("type", "text") in ("text", "input_text"):
        part = part.get("text")
    if not isinstance(part, str):
        raise WrongCellError(column, "a message whose parts are text: no images, no audio", part)
    return text_of(part, column)


def _is_trained(message: Mapping[str, Any], column: str) -> bool:
    for key in _WEIGHTS:
        value = message.get(key)
        if value is not None:
            if value not in (0, 1):
                raise WrongCellError(column, f"a message whose {key} is 0 or 1", value)
            return bool(value)
    return True


def _single_call(call: Any) -> list[Any]:
    """OpenAI's older `function_call` as a list of calls."""
    return [call] if isinstance(call, Mapping) and call.get("name") else []


def _tool_call(call: Any, column: str) -> dict[str, Any]:
    """A tool call with its arguments as an object, as chat templates want them."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise WrongCellError(column, "tool calls with a function's name and arguments", call)
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        parsed = _parsed(arguments)
        arguments = parsed if isinstance(parsed, dict) else arguments
    made: dict[str, Any] = {"type": "function"}
    if call.get("id"):
        made["id"] = call["id"]
    return {**made, "function": {"name": function["name"], "arguments": arguments}}


def read_tools(value: Any, column: str) -> str:
    """JSON list of the functions that a conversation may call; empty for none.

    Raises:
        WrongCellError: it is no list of function descriptions, nor the JSON text of one.
    """
    tools = _parsed(value.strip()) if isinstance(value, str) else value
    if not tools:
        return ""
    tools = tools if isinstance(tools, list) else [tools]
    for tool in tools:
        if not isinstance(tool, Mapping) or not ("name" in tool or "function" in tool):
            raise WrongCellError(column, "a list of functions with their names", value)
    whole = [t if "function" in t else {"type": "function", "function": t} for t in tools]
    encoded = json.dumps(whole, ensure_ascii=False)
    return text_of(encoded, column)


def _parsed(text: Any) -> Any:
    """The value of a JSON text; the text itself where it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return text


@dataclass(frozen=True, slots=True)
class _Node:
    """A message of a tree; its replies are found by `parent`."""

    message: Message
    key: str
    parent: str
    order: tuple[int, int]
    """Rank among its siblings (the best is 0), then the place in the file."""


def read_threads(
    records: Sequence[Mapping[str, Any]], column: str
) -> list[tuple[str, tuple[Message, ...]]]:
    """Threads of OpenAssistant's trees, each with the key of its tree.

    A thread leads from a root to an answer that no other answer follows. Every answer is trained
    once: in later threads that share it, it is `trained=False`. Deleted messages are left out, with
    what hangs below them.

    Args:
        records: of messages with `message_id`, `parent_id`, `role` and the text in `column`; or of
            trees, nested under `prompt` and `replies`.
        column: `text` for messages, `prompt` for trees.

    Raises:
        WrongCellError: a message has no known role, or no text.
    """
    nodes = list(_flat(records) if column == "text" else _nested(records, column))
    known = {node.key for node in nodes}
    replies: dict[str, list[_Node]] = {}
    roots = []
    for node in sorted(nodes, key=lambda node: node.order):
        if node.parent in known:
            replies.setdefault(node.parent, []).append(node)
        elif not node.parent:
            # A message whose parent is not in the file answers nobody knows what.
            roots.append(node)
    roots.sort(key=lambda node: node.order[1])
    return [(root.key, thread) for root in roots for thread in _threads(root, replies)]


def _threads(root: _Node, replies: Mapping[str, list[_Node]]) -> Iterator[tuple[Message, ...]]:
    trained: set[str] = set()
    waiting: list[tuple[_Node, ...]] = [(root,)]
    while waiting:
        path = waiting.pop()
        below = replies.get(path[-1].key, [])
        waiting += [(*path, reply) for reply in reversed(below)]
        is_answered = any(replies.get(reply.key) for reply in below)
        if path[-1].message.role != "assistant" or is_answered:
            continue
        yield tuple(replace(n.message, trained=n.key not in trained) for n in path)
        trained |= {node.key for node in path}


def _flat(records: Sequence[Mapping[str, Any]]) -> Iterator[_Node]:
    for place, record in enumerate(records):
        if not record.get("deleted"):
            parent = str(record.get("parent_id") or "")
            yield _node(record, str(record.get("message_id")), parent, place, "text")


def _nested(records: Sequence[Mapping[str, Any]], column: str) -> Iterator[_Node]:
    place = 0
    waiting = [(record.get(column), "") for record in reversed(records)]
    while waiting:
        message, parent = waiting.pop()
        if not isinstance(message, Mapping):
            raise WrongCellError(column, "a tree: an object of role, text and replies", message)
        if message.get("deleted"):
            continue
        place += 1
        yield _node(message, str(place), parent, place, column)
        waiting += [(reply, str(place)) for reply in reversed(message.get("replies") or [])]


def _node(message: Mapping[str, Any], key: str, parent: str, place: int, column: str) -> _Node:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise WrongCellError(column, f"a role of {', '.join(ROLES)}", role)
    content = text_of(message.get("text"), column, "text")
    rank = message.get("rank")
    order = (int(rank) if isinstance(rank, int | float) and rank == rank else 1 << 30, place)
    return _Node(Message(ROLES[role], content), key, parent, order)
