"""Turns records (question/answer, prompt/completion, instruction/output, chat) into rows.

A record whose prompt or completion is empty is left out and counted. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.sections import DataConfig
from trial.data.readers import Table, read_table, refuse

PROMPT_COLUMNS = ("question", "prompt", "instruction")
COMPLETION_COLUMNS = ("answer", "completion", "response", "output")
MESSAGES_COLUMNS = ("messages", "conversations")
INPUT_COLUMN = "input"
PARAPHRASED_COLUMN, PERTURBED_COLUMN = "paraphrased_answer", "perturbed_answer"
"""Columns of the TOFU data (Maini et al. 2024): the answer in other words, and wrong answers. The
truth ratio uses them where they exist."""
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Role by its name in chat records; `human` and `gpt` are ShareGPT's names."""
MAX_PROBLEMS = 10
"""Reading stops at so many wrong records."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its completion.

    Of a conversation, the completion is the last assistant message and the prompt all before it.
    """

    turns: tuple[Turn, ...]
    completion: str
    is_chat: bool = False
    alternative: str = ""
    """The answer to train on instead of forgetting (`data.alternative_column`)."""
    paraphrased: str = ""
    """The completion in other words."""
    perturbed: tuple[str, ...] = ()
    """Wrong completions."""

    @property
    def prompt_key(self) -> str:
        """Identity of the prompt; rows that share it are in the same set of a split."""
        return json.dumps(self.turns, ensure_ascii=False)

    def digest(self) -> str:
        """Hash of the prompt and the completion."""
        content = json.dumps([self.turns, self.completion, self.is_chat], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Rows:
    """The usable rows of a source."""

    rows: list[Row]
    skipped: int
    """Records left out because their prompt or completion is empty."""
    source: str


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns that rows are read from: `messages`, or `prompt` and `completion`."""

    prompt: str = ""
    completion: str = ""
    extra: str = ""
    """`input` of instruction data in Alpaca's format, which is appended to the prompt."""
    messages: str = ""
    alternative: str = ""
    paraphrased: str = ""
    perturbed: str = ""


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
    columns = find_columns(table.columns, config, table.source)
    columns = _with_unlearning_columns(columns, table, config, alternative)
    rows: list[Row] = []
    problems: list[Problem] = []
    skipped = 0
    for index, record in enumerate(table.records):
        try:
            record_rows = [row for row in _rows_in(record, columns) if _has_text(row)]
        except _WrongCellError as error:
            rule = f"{table.location(index)} column {error.column!r}: {error.expected}"
            problems.append(Problem(key, rule, error.got))
            if len(problems) == MAX_PROBLEMS:
                break
            continue
        rows += record_rows
        skipped += not record_rows
    if problems:
        raise ConfigError(problems)
    if not rows:
        rule = f"{table.source}: at least one row with a prompt and a completion"
        raise refuse(key, rule, f"{skipped} rows, each with an empty one")
    return Rows(rows, skipped, table.source)


def _has_text(row: Row) -> bool:
    has_prompt = any(turn.content.strip() for turn in row.turns if turn.role != "system")
    return has_prompt and bool(row.completion.strip())


def find_columns(known: Sequence[str], config: DataConfig, source: str) -> _Columns:
    """Choose the columns of prompt and completion, or of messages.

    Raises:
        ConfigError: a configured column is missing, or none has a known name.
    """
    if config.messages_column is not None:
        return _Columns(messages=_configured("messages", config.messages_column, known, source))
    prompt = _column("prompt", config.prompt_column, PROMPT_COLUMNS, known, source)
    completion = _column("completion", config.completion_column, COMPLETION_COLUMNS, known, source)
    if prompt and completion:
        extra = _first_known((INPUT_COLUMN,), known) if prompt.lower() == "instruction" else ""
        return _Columns(prompt, completion, extra)
    messages = _first_known(MESSAGES_COLUMNS, known)
    if messages and config.prompt_column is None and config.completion_column is None:
        return _Columns(messages=messages)
    raise ConfigError(_no_column(prompt, completion, known, source))


def _with_unlearning_columns(
    columns: _Columns, table: Table, config: DataConfig, alternative: str | None
) -> _Columns:
    """Add the columns of further answers, which only unlearning reads."""
    if config.forget_path is None or columns.messages:
        return columns
    known, alternative_column = table.columns, ""
    if alternative is not None:
        alternative_column = _configured("alternative", alternative, known, table.source)
    return replace(
        columns,
        alternative=alternative_column,
        paraphrased=_first_known((PARAPHRASED_COLUMN,), known),
        perturbed=_first_known((PERTURBED_COLUMN,), known),
    )


def _column(
    what: str, configured: str | None, defaults: Sequence[str], known: Sequence[str], source: str
) -> str:
    if configured is None:
        return _first_known(defaults, known)
    return _configured(what, configured, known, source)


def _configured(what: str, name: str, known: Sequence[str], source: str) -> str:
    if name in known:
        return name
    rule = f"a column of {source}: {', '.join(known)}"
    raise refuse(f"data.{what}_column", rule, repr(name), nearest(name, known))


def _first_known(names: Sequence[str], known: Sequence[str]) -> str:
    by_lower = {name.strip().lower(): name for name in reversed(known)}
    return next((by_lower[name] for name in names if name in by_lower), "")


def _no_column(prompt: str, completion: str, known: Sequence[str], source: str) -> list[Problem]:
    wanted = (("prompt", prompt, PROMPT_COLUMNS), ("completion", completion, COMPLETION_COLUMNS))
    problems = []
    for what, found, defaults in wanted:
        if not found:
            rule = f"{source}: a column named {' or '.join(defaults)}, or `data.{what}_column`"
            near = next((near for name in known if (near := nearest(name.lower(), defaults))), "")
            problems.append(Problem(f"data.{what}_column", rule, ", ".join(known)[:120], near))
    return problems


class _WrongCellError(Exception):
    def __init__(self, column: str, expected: str, got: object) -> None:
        super().__init__(column, expected)
        self.column, self.expected = column, expected
        self.got = f"{got!r:.60} ({type(got).__name__})"


def _rows_in(record: Mapping[str, Any], columns: _Columns) -> Iterator[Row]:
    """The rows of one record: one for each of its answers."""
    if columns.messages:
        yield _conversation(record, columns.messages)
        return
    prompt = _text(record, columns.prompt)
    extra = _text(record, columns.extra) if columns.extra else ""
    if prompt.strip() and extra.strip():
        prompt = f"{prompt}\n\n{extra}"
    for completion in _answers(record, columns.completion):
        yield Row((Turn("user", prompt),), completion, **_further_answers(record, columns))


def _further_answers(record: Mapping[str, Any], columns: _Columns) -> dict[str, Any]:
    """Answers for unlearning, by the name of their field in `Row`."""
    named = {name: getattr(columns, name) for name in ("alternative", "paraphrased")}
    answers: dict[str, Any] = {name: _text(record, at) for name, at in named.items() if at}
    if columns.perturbed and record.get(columns.perturbed) is not None:
        answers["perturbed"] = tuple(_answers(record, columns.perturbed))
    return answers


def _cell(record: Mapping[str, Any], column: str) -> Any:
    if column not in record:
        raise _WrongCellError(column, "text in this column, as in other rows", dict(record))
    return record[column]


def _text(record: Mapping[str, Any], column: str) -> str:
    value = record.get(column) if column == INPUT_COLUMN else _cell(record, column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _WrongCellError(column, "text", value)
    return value


def _answers(record: Mapping[str, Any], column: str) -> list[str]:
    value = _cell(record, column)
    if not isinstance(value, list):
        return [_text(record, column)]
    for answer in value:
        if not isinstance(answer, str):
            raise _WrongCellError(column, "text, or a list of texts", answer)
    return value


def _conversation(record: Mapping[str, Any], column: str) -> Row:
    value = _cell(record, column)
    if not isinstance(value, list):
        raise _WrongCellError(column, "a list of messages", value)
    turns = [_turn(message, column) for message in value]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        return Row((), "", is_chat=True)
    return Row(tuple(turns[:-1]), turns[-1].content, is_chat=True)


def _turn(message: object, column: str) -> Turn:
    if not isinstance(message, Mapping):
        raise _WrongCellError(column, "messages that are objects of role and content", message)
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role not in ROLES:
        raise _WrongCellError(column, f"a role of {', '.join(ROLES)}", role)
    if not isinstance(content, str):
        raise _WrongCellError(column, "a message whose content is text", content)
    return Turn(ROLES[role], content)
