"""Turns records (question/answer, prompt/completion, instruction/output, chat, text) into rows.

A record without a prompt, or without an answer that counts, is left out and counted. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig
from trial.data.columns import PARAPHRASED_COLUMN as PARAPHRASED
from trial.data.columns import PERTURBED_COLUMN as PERTURBED
from trial.data.columns import Columns, configured, find_columns
from trial.data.messages import (
    Message,
    WrongCellError,
    content_of,
    is_message_list,
    read_history,
    read_messages,
    read_threads,
    read_tools,
    text_of,
    unread_keys,
)
from trial.data.readers import Table, read_table, refuse

MAX_PROBLEMS = 10
"""Reading stops at so many wrong records."""


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation that ends in an answer; a prompt and its completion are the shortest one.

    A row of text alone is one assistant's message.
    """

    messages: tuple[Message, ...]
    kind: Literal["pair", "chat", "text"] = "pair"
    tools: str = ""
    """JSON list of the functions that may be called, or empty."""
    alternative: str = ""
    """The answer to train on instead of forgetting (`data.alternative_column`)."""
    paraphrased: str = ""
    """The completion in other words."""
    perturbed: tuple[str, ...] = ()
    """Wrong completions."""
    group: str = ""
    """Identity of what stands before the first answer that counts, where that is not the last."""

    @property
    def turns(self) -> tuple[Message, ...]:
        """All messages before the last answer."""
        return self.messages[:-1]

    @property
    def completion(self) -> str:
        """The last answer."""
        return self.messages[-1].content

    @property
    def prompt_key(self) -> str:
        """Identity of the prompt; rows that share it are in the same set of a split."""
        if self.kind == "text":
            return json.dumps(["text", self.completion], ensure_ascii=False)
        return self.group or _key(self.turns)

    def digest(self) -> str:
        """Hash of everything that is tokenized."""
        content: list[Any] = [_pairs(self.turns), self.completion, self.kind == "chat"]
        more = [[m.trained, m.extra] for m in self.messages]
        if self.tools or self.kind == "text" or any(m != [True, ""] for m in more):
            content += [self.kind, self.tools, more]
        text = json.dumps(content, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def with_completion(self, text: str) -> Row:
        """The row with another last answer."""
        return replace(self, messages=(*self.turns, Message("assistant", text)))


def pair(prompt: str, completion: str, system: str = "") -> Row:
    """A row of one prompt and its completion."""
    before = (Message("system", system),) if system.strip() else ()
    return Row((*before, Message("user", prompt), Message("assistant", completion)))


def _pairs(messages: tuple[Message, ...]) -> list[list[str]]:
    """Role and content of each message, and what else there is."""
    return [[m.role, m.content, *([m.extra] if m.extra else [])] for m in messages]


def _key(messages: tuple[Message, ...]) -> str:
    return json.dumps(_pairs(messages), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Rows:
    """The usable rows of a source."""

    rows: list[Row]
    skipped: int
    """Records left out because their prompt is empty, or no answer counts."""
    source: str
    used_columns: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    """Columns that no row is made of, and keys of messages that nothing reads."""


def read_forget(config: DataConfig) -> Rows:
    """The rows of `data.forget_path`.

    Raises:
        ConfigError: as in `read_rows`, or the column `data.alternative_column` is missing.
    """
    key, forget_name = "data.forget_path", {"name": config.forget_name or config.name}
    table = read_table(
        str(config.forget_path), config.model_copy(update=forget_name), config.forget_split, key
    )
    return _rows_of(table, config, key, alternative=config.alternative_column)


def read_rows(config: DataConfig, which: Literal["train", "eval"] = "train") -> Rows:
    """Read the rows of `data.path`, or those of the separate eval set.

    Raises:
        ConfigError: the source cannot be read as rows; names file and line.
        ValueError: there is no separate eval set.
    """
    if which == "train":
        return _rows_of(read_table(config.path, config, config.split), config, "data.path")
    if config.eval_path is not None:
        table = read_table(config.eval_path, config, config.eval_split or config.split, _EVAL_KEY)
        return _rows_of(table, config, _EVAL_KEY)
    if config.eval_split is not None:
        table = read_table(config.path, config, config.eval_split, "data.eval_split")
        return _rows_of(table, config, "data.eval_split")
    raise ValueError("there is no separate eval set: neither eval_path nor eval_split is set")


_EVAL_KEY = "data.eval_path"


def _rows_of(table: Table, config: DataConfig, key: str, alternative: str | None = None) -> Rows:
    columns = find_columns(table.columns, config, table.source, table.records)
    columns = _with_unlearning_columns(columns, table, config, alternative)
    reader = _RowReader(columns, config)
    if columns.kind == "tree":
        rows, skipped = _tree_rows(table, columns, reader, key)
    else:
        rows, skipped = _plain_rows(table, reader, key)
    if not rows:
        rule = f"{table.source}: at least one row with a prompt and a completion"
        raise refuse(key, rule, f"{skipped} rows, each with an empty one")
    used = columns.used()
    unused = [name for name in table.columns if name not in used]
    unused += [f"{columns.messages}.{name}" for name in _unread_keys(table, columns)]
    return Rows(rows, skipped, table.source, used, tuple(unused))


def _plain_rows(table: Table, reader: _RowReader, key: str) -> tuple[list[Row], int]:
    """The rows of every record, and the number of records without any."""
    rows: list[Row] = []
    problems: list[Problem] = []
    skipped = 0
    for index, record in enumerate(table.records):
        try:
            record_rows = [row for row in reader.rows(record) if _has_text(row)]
        except WrongCellError as error:
            rule = f"{table.location(index)} column {error.column!r}: {error.expected}"
            problems.append(Problem(key, rule, error.got))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        rows += record_rows
        skipped += not record_rows
    if problems:
        raise ConfigError(problems)
    return rows, skipped


def _tree_rows(
    table: Table, columns: Columns, reader: _RowReader, key: str
) -> tuple[list[Row], int]:
    """One row for each thread of OpenAssistant's trees; a tree is never split."""
    try:
        threads = read_threads(table.records, columns.messages)
    except WrongCellError as error:
        rule = f"{table.source} column {error.column!r}: {error.expected}"
        raise refuse(key, rule, error.got) from error
    rows = [replace(reader.conversation(thread), group=tree) for tree, thread in threads]
    kept = [row for row in rows if _has_text(row)]
    return kept, len(rows) - len(kept)


def _unread_keys(table: Table, columns: Columns) -> list[str]:
    """Keys of chat messages that nothing reads."""
    found: dict[str, None] = {}
    for record in table.records if columns.kind == "chat" else ():
        cell = record.get(columns.messages)
        for message in cell if isinstance(cell, list) else ():
            if isinstance(message, Mapping):
                found |= dict.fromkeys(unread_keys(message))
    return list(found)


def _has_text(row: Row) -> bool:
    if not row.messages or not any(m.trained and m.role == "assistant" for m in row.messages):
        return False
    has_prompt = any(m.content.strip() or m.extra for m in row.turns if m.role != "system")
    return (has_prompt or row.kind == "text") and bool(
        row.completion.strip() or row.messages[-1].extra
    )


def _with_unlearning_columns(
    columns: Columns, table: Table, config: DataConfig, alternative: str | None
) -> Columns:
    """Add the columns of further answers, which only unlearning reads."""
    if config.forget_path is None or columns.kind != "pair":
        return columns
    lower = {name.strip().lower(): name for name in reversed(table.columns)}
    name = "" if alternative is None else alternative
    if alternative is not None:
        name = configured("alternative", alternative, table.columns, table.source)
    return replace(
        columns,
        alternative=name,
        paraphrased=lower.get(PARAPHRASED, ""),
        perturbed=lower.get(PERTURBED, ""),
    )


class _RowReader:
    """Makes rows of records."""

    def __init__(self, columns: Columns, config: DataConfig) -> None:
        self.columns = columns
        self.is_earlier = config.tokenize == "apart"
        self.trains_all = config.train_on == "all"

    def rows(self, record: Mapping[str, Any]) -> Iterator[Row]:
        """The rows of one record: one for each of its answers."""
        columns = self.columns
        if columns.kind == "text":
            text = text_of(_cell(record, columns.completion), columns.completion)
            yield Row((Message("assistant", text),), "text")
            return
        tools = next(filter(None, (read_tools(record.get(c), c) for c in columns.tools)), "")
        if columns.kind == "chat":
            messages = read_messages(_cell(record, columns.messages), columns.messages)
            row = self.conversation(self._with_system(messages, record))
            yield replace(row, tools=tools)
            return
        prompt, completion = (_cell(record, c) for c in (columns.prompt, columns.completion))
        if is_message_list(prompt) or is_message_list(completion):
            yield replace(self._prompt_and_completion(record, prompt, completion), tools=tools)
            return
        text = self._prompt_text(record, prompt)
        system = self._system(record)
        answers = _answers(completion, columns.completion)
        before = read_history(record.get(columns.history), columns.history)
        for answer in answers if self.is_earlier else dict.fromkeys(answers):
            row = pair(text, answer, system)
            if before and text.strip():
                messages = (*before, Message("user", text), Message("assistant", answer))
                row = self.conversation(self._with_system(messages, record))
            yield replace(row, tools=tools, **self._further(record))

    def conversation(self, messages: tuple[Message, ...]) -> Row:
        """The row of a conversation, up to its last answer that counts."""
        if self.is_earlier:
            messages = tuple(Message(m.role, m.content) for m in messages)
        end = len(messages)
        while end and not (messages[end - 1].role == "assistant" and messages[end - 1].trained):
            end -= 1
        messages = messages[:end]
        counted = [n for n, m in enumerate(messages) if m.role == "assistant" and m.trained]
        is_one = not self.trains_all or len(counted) < 2
        # A greeting answers nothing: rows that begin with the same one do not share a prompt.
        asked = next((n for n, m in enumerate(messages) if m.role in ("user", "tool")), 0)
        first = next((n for n in counted if n > asked), len(messages) - 1)
        return Row(messages, "chat", group="" if is_one else _key(messages[:first]))

    def _prompt_and_completion(
        self, record: Mapping[str, Any], prompt: Any, completion: Any
    ) -> Row:
        """TRL's conversational prompt and completion: the prompt's own answers do not count."""
        columns = self.columns
        if is_message_list(prompt):
            before = self._with_context(read_messages(prompt, columns.prompt), record)
        else:
            before = (Message("user", self._prompt_text(record, prompt)),)
        before = tuple(replace(message, trained=False) for message in before)
        start = int(before[0].role == "system")
        history = read_history(record.get(columns.history), columns.history)
        before = (*before[:start], *history, *before[start:])
        if is_message_list(completion):
            after = read_messages(completion, columns.completion)
        else:
            after = (Message("assistant", text_of(completion, columns.completion)),)
        return self.conversation(self._with_system((*before, *after), record))

    def _with_context(
        self, messages: tuple[Message, ...], record: Mapping[str, Any]
    ) -> tuple[Message, ...]:
        """The messages of a prompt, the context after the last one of the user."""
        context = self._context(record)
        asked = [n for n, message in enumerate(messages) if message.role == "user"]
        if not context.strip():
            return messages
        if not asked:
            return (*messages, Message("user", context))
        last = messages[asked[-1]]
        with_context = replace(last, content=f"{last.content}\n\n{context}")
        return (*messages[: asked[-1]], with_context, *messages[asked[-1] + 1 :])

    def _context(self, record: Mapping[str, Any]) -> str:
        column = self.columns.context
        return _joined(record.get(column), self.columns) if column else ""

    def _prompt_text(self, record: Mapping[str, Any], cell: Any) -> str:
        prompt, context = text_of(cell, self.columns.prompt), self._context(record)
        return f"{prompt}\n\n{context}" if prompt.strip() and context.strip() else prompt

    def _system(self, record: Mapping[str, Any]) -> str:
        column = self.columns.system
        cell = record.get(column) if column else None
        if isinstance(cell, Mapping) and isinstance(cell.get("parts"), list):
            cell = cell["parts"]
        return content_of(cell, column) if isinstance(cell, list) else text_of(cell, column)

    def _with_system(
        self, messages: tuple[Message, ...], record: Mapping[str, Any]
    ) -> tuple[Message, ...]:
        """The messages after the system column's text; one system message, as templates want it."""
        system = self._system(record)
        if not system.strip():
            return messages
        if messages and messages[0].role == "system":
            own = messages[0].content
            if own.strip() and own.strip() != system.strip():
                system = f"{system}\n\n{own}"
            messages = messages[1:]
        return (Message("system", system), *messages)

    def _further(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Answers for unlearning, by the name of their field in `Row`."""
        columns = self.columns
        named = {name: getattr(columns, name) for name in ("alternative", "paraphrased")}
        answers: dict[str, Any] = {
            name: text_of(_cell(record, column), column) for name, column in named.items() if column
        }
        if columns.perturbed and record.get(columns.perturbed) is not None:
            cell = record[columns.perturbed]
            answers["perturbed"] = tuple(_answers(cell, columns.perturbed))
        return answers


def _cell(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise WrongCellError(column, "text in this column, as in other rows", dict(record))
    return record[column]


def _joined(value: Any, columns: Columns) -> str:
    """A context as text; the paragraphs of a list are separated by blank lines."""
    column = columns.context
    if isinstance(value, list):
        return "\n\n".join(text_of(part, column) for part in value)
    rule = "text, a number or a list of texts (`data.context_column: ''` leaves it out)"
    return text_of(value, column, rule)


def _answers(value: Any, column: str) -> list[str]:
    """The answers of a cell: one, a list, or an object of them (SQuAD, TriviaQA)."""
    value = _answer_of(value)
    rule = "text or a number, a list of them, or an object with `text` or `value`"
    values = map(_answer_of, value) if isinstance(value, list) else [value]
    return [text_of(answer, column, rule) for answer in values]


def _answer_of(value: Any) -> Any:
    """What an object has under `text` or `value`; anything else is itself."""
    keys = ("text", "value") if isinstance(value, Mapping) else ()
    return next((value[key] for key in keys if value.get(key) is not None), value)
