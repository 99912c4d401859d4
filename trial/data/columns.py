"""Which columns of a table rows are made of: known shapes, or as the configuration says.

Two candidates for one meaning are refused: a person decides, with the key that the error names.
Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.sections import DataConfig
from trial.data.messages import WrongCellError, read_history, read_tools
from trial.data.readers import refuse

Kind = Literal["pair", "chat", "text", "tree"]

PROMPT_COLUMNS = ("question", "prompt", "instruction", "query")
COMPLETION_COLUMNS = ("answer", "answers", "completion", "response", "output")
BOUND_COLUMNS = (("inputs", "targets"), ("user", "assistant"))
"""Prompts and completions that are known only side by side: each name alone may mean anything."""
LAST_COLUMNS = (
    ("problem", "solution"),
    ("human", "assistant"),
    ("dialogue", "summary"),
    ("document", "summary"),
    ("article", "highlights"),
)
"""The same, for tables that have no other shape."""
INPUT_COLUMN = "input"
"""The prompt, where no other column is; beside `instruction` it is what that is about (Alpaca)."""
CONTEXT_COLUMNS = ("context", "passage")
SYSTEM_COLUMNS = (
    *("system", "system_prompt", "system_message"),
    *("systeminstruction", "system_instruction"),
)
HISTORY_COLUMN = "history"
MESSAGES_COLUMNS = ("messages", "conversations", "conversation", "contents")
TOOLS_COLUMNS = ("tools", "functions")
TEXT_COLUMNS = ("text", "content")
"""Of both, the first: `content` may be part of a table of texts (a file's path and content)."""
PREFERENCE_COLUMNS = ("chosen", "rejected")
PARAPHRASED_COLUMN, PERTURBED_COLUMN = "paraphrased_answer", "perturbed_answer"
"""Columns of the TOFU data (Maini et al. 2024): the answer in other words, and wrong answers. The
truth ratio uses them where they exist."""
_FLAT_TREE = ("message_id", "parent_id", "role", "text")
_NESTED_TREE = ("message_tree_id", "prompt")
"""Columns of OpenAssistant's files of messages and of trees."""

_IDLE: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "chat": ("conversations", ("prompt", "completion", "context", "history")),
    "text": ("texts alone", ("system", "context", "history")),
    "tree": ("message trees", ("system", "context", "history")),
}
"""How each shape is called, and the columns that have no place in it."""

_EARLIER_PROMPTS = ("question", "prompt", "instruction")
_EARLIER_COMPLETIONS = ("answer", "completion", "response", "output")
_EARLIER_MESSAGES = ("messages", "conversations")
"""What `tokenize: apart` knows; of several it takes the first."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that rows are read from; empty names are not used."""

    kind: Kind
    prompt: str = ""
    completion: str = ""
    """Of text rows, the text."""
    context: str = ""
    system: str = ""
    history: str = ""
    """Turns before the prompt (LLaMA-Factory's Alpaca)."""
    messages: str = ""
    tools: tuple[str, ...] = ()
    """The first that has something in a record."""
    alternative: str = ""
    paraphrased: str = ""
    perturbed: str = ""
    structure: tuple[str, ...] = ()
    """Columns that say how rows belong together."""

    def used(self) -> tuple[str, ...]:
        """The names of all of them."""
        lists = ("kind", "tools", "structure")
        named = (getattr(self, f.name) for f in fields(self) if f.name not in lists)
        return tuple(dict.fromkeys([*filter(None, named), *self.tools, *self.structure]))


def find_columns(
    known: Sequence[str],
    config: DataConfig,
    source: str,
    records: Sequence[Mapping[str, Any]] = (),
) -> Columns:
    """Choose the columns of a table.

    Args:
        known: the table's columns.
        config: the `data` section.
        source: name of the table, for errors.
        records: its records.

    Raises:
        ConfigError: a configured column is missing or would not be read, none has a known name, or
            several have.
    """
    if config.tokenize == "apart":
        return _earlier_columns(known, config, source)
    finder = _Finder(known, config, source, records)
    shape = finder.shape()
    _refuse_idle(shape.kind, config, source)
    return finder.with_further(shape)


class _Finder:
    """Finds columns by name, without regard to case."""

    def __init__(
        self,
        known: Sequence[str],
        config: DataConfig,
        source: str,
        records: Sequence[Mapping[str, Any]],
    ) -> None:
        self.known, self.config, self.source, self.records = known, config, source, records
        self.first = records[0] if records else {}

    def found(self, names: Sequence[str]) -> list[str]:
        """The table's columns of these names, in the order of the names."""
        by_lower = {name.strip().lower(): name for name in reversed(self.known)}
        return [by_lower[name] for name in names if name in by_lower]

    def one(self, what: str, names: Sequence[str]) -> str:
        """The only column of these names; empty for none.

        Raises:
            ConfigError: there are several.
        """
        found = self.found(names)
        if len(found) > 1:
            raise self.ambiguous(what, found)
        return found[0] if found else ""

    def ambiguous(self, what: str, found: Sequence[str]) -> ConfigError:
        """The refusal of several columns for one meaning."""
        listed = f"{', '.join(found[:-1])} or {found[-1]}"
        rule = f"the one to read of {self.source}: {listed}, all of them its columns"
        return refuse(f"data.{what}_column", rule, "null", found[0])

    def shape(self) -> Columns:
        """The columns that make a row; without context, system message and tools."""
        config = self.config
        if config.messages_column is not None:
            messages = configured("messages", config.messages_column, self.known, self.source)
            return Columns("chat", messages=messages)
        if config.prompt_column == "":
            return Columns("text", completion=self._text_column())
        pair, is_given = self._pair(), config.prompt_column or config.completion_column
        if is_given:
            return pair if pair.prompt and pair.completion else self._none(pair)
        if tree := self._tree():
            return tree
        messages = self.one("messages", MESSAGES_COLUMNS)
        if pair.prompt and pair.completion:
            if messages:
                raise self.ambiguous("messages", [messages, f"{pair.prompt} and {pair.completion}"])
            self._refuse_unpaired_preference(pair)
            return pair
        if messages:
            return Columns("chat", messages=messages)
        if not pair.prompt and not pair.completion:
            if text := self.found(TEXT_COLUMNS):
                return Columns("text", completion=text[0])
            if last := self._last_pair():
                return last
        return self._none(pair)

    def _pair(self) -> Columns:
        """Prompt and completion, either of them empty where there is none."""
        config = self.config
        prompt = config.prompt_column
        if prompt is not None:
            prompt = configured("prompt", prompt, self.known, self.source)
        completion = config.completion_column
        if completion is not None:
            completion = configured("completion", completion, self.known, self.source)
        prompts = [name for name in self.found(PROMPT_COLUMNS) if name != completion]
        completions = [name for name in self.found(COMPLETION_COLUMNS) if name != prompt]
        for pair in BOUND_COLUMNS:
            bound = self.found(pair)
            if len(bound) == 2 and not {prompt, completion} & set(bound):
                prompts, completions = [*prompts, bound[0]], [*completions, bound[1]]
            elif len(bound) == 2:
                prompts, completions = prompts or bound[:1], completions or bound[1:]
        plain_input = self.found((INPUT_COLUMN,))
        is_about = [name.lower() for name in prompts] == ["instruction"]
        is_unclear = not is_about and config.context_column is None
        if plain_input and prompt is None and (is_unclear or not prompts):
            prompts += plain_input
        if completions and not prompts and prompt is None:
            prompts = self.found(CONTEXT_COLUMNS)
        if prompt is None and len(prompts) > 1:
            raise self.ambiguous("prompt", prompts)
        if completion is None and len(completions) > 1:
            raise self.ambiguous("completion", completions)
        return Columns("pair", prompt or "".join(prompts), completion or "".join(completions))

    def _last_pair(self) -> Columns | None:
        """The pair of a table without any other known column.

        Raises:
            ConfigError: there are several.
        """
        pairs = [found for names in LAST_COLUMNS if len(found := self.found(names)) == 2]
        if len(pairs) > 1:
            raise self.ambiguous("prompt", list(dict.fromkeys(pair[0] for pair in pairs)))
        return Columns("pair", pairs[0][0], pairs[0][1]) if pairs else None

    def _text_column(self) -> str:
        if self.config.completion_column is not None:
            name = self.config.completion_column
            return configured("completion", name, self.known, self.source)
        if text := self.found(TEXT_COLUMNS):
            return text[0]
        rule = f"the column of {self.source} with the text: {', '.join(self.known)}"
        raise refuse("data.completion_column", rule, "null")

    def _tree(self) -> Columns | None:
        flat, nested = self.found(_FLAT_TREE), self.found(_NESTED_TREE)
        if len(flat) == len(_FLAT_TREE):
            extra = self.found(("rank", "deleted"))
            return Columns("tree", messages=flat[3], structure=(*flat[:3], *extra))
        if len(nested) == len(_NESTED_TREE) and isinstance(self.first.get(nested[1]), Mapping):
            return Columns("tree", messages=nested[1], structure=(nested[0],))
        return None

    def _refuse_unpaired_preference(self, pair: Columns) -> None:
        label = self.found(("label",))
        if label and isinstance(self.first.get(label[0]), bool):
            rule = (
                f"{self.source}: answers to learn from. Its {label[0]!r} marks wanted and unwanted "
                "answers, and preference sets are out of scope; name both columns to learn them all"
            )
            raise refuse("data.completion_column", rule, "null", pair.completion)

    def _none(self, pair: Columns) -> Columns:
        """Refuse a table without the columns of any shape."""
        chosen = self.found(PREFERENCE_COLUMNS)
        if len(chosen) == 2 and not pair.completion:
            key = "completion_column" if pair.prompt else "messages_column"
            rule = (
                f"{self.source}: one answer to each prompt. Preference sets ({' and '.join(chosen)}"
                f") are out of scope; `data.{key}: {chosen[0]}` trains on the chosen answers"
            )
            raise refuse(f"data.{key}", rule, "null", chosen[0])
        problems = no_column(pair, self.known, self.source)
        if len(problems) == 2:
            lists = [name for name, cell in self.first.items() if _is_conversation(cell)]
            problems[0] = replace(problems[0], expected=f"{problems[0].expected}; {_ways(lists)}")
        raise ConfigError(problems)

    def with_further(self, columns: Columns) -> Columns:
        """Add context, system message and tools."""
        if columns.kind in ("text", "tree"):
            return columns
        system = self._optional("system", self.config.system_column, SYSTEM_COLUMNS)
        taken = {columns.prompt, columns.completion, columns.messages}
        names = [*CONTEXT_COLUMNS, *([INPUT_COLUMN] if _is_instruction(columns) else [])]
        names = [name for name in names if not set(self.found((name,))) & taken]
        context = history = ""
        if columns.kind == "pair":
            context = self._optional("context", self.config.context_column, names)
            history = self._history()
        tools = self._tools(columns)
        return replace(columns, system=system, context=context, history=history, tools=tools)

    def _optional(self, what: str, given: str | None, names: Sequence[str]) -> str:
        if given is None:
            return self.one(what, names)
        return configured(what, given, self.known, self.source) if given else ""

    def _history(self) -> str:
        """The column of earlier turns; of its known name only if its first filled cell has them."""
        given = self.config.history_column
        if given is not None or not (found := self.found((HISTORY_COLUMN,))):
            return self._optional("history", given, ())
        try:
            return found[0] if any(read_history(r.get(found[0]), "") for r in self.records) else ""
        except WrongCellError:
            return ""

    def _tools(self, columns: Columns) -> tuple[str, ...]:
        """Columns of functions to call; beside a pair, such a name may mean anything else."""
        found = self.found(TOOLS_COLUMNS)
        try:
            is_given = columns.kind == "chat" or any(read_tools(self.first[c], c) for c in found)
        except (WrongCellError, KeyError):
            is_given = False
        return tuple(found) if is_given else ()


def _refuse_idle(kind: Kind, config: DataConfig, source: str) -> None:
    """Refuse the configured columns of which no row would be made."""
    words, idle = _IDLE.get(kind, ("", ()))
    rule = f"null: {source} is read as {words}, where such a column has no place"
    given = {f"data.{name}_column": getattr(config, f"{name}_column") for name in idle}
    if problems := [Problem(key, rule, repr(name)) for key, name in given.items() if name]:
        raise ConfigError(problems)


def _is_conversation(cell: Any) -> bool:
    """Whether a cell may be the messages of a conversation."""
    return isinstance(cell, list) and len(cell) > 1 and all(isinstance(m, str | dict) for m in cell)


def _ways(lists: Sequence[str]) -> str:
    """What reads a table that has neither a prompt nor a completion."""
    name = lists[0] if lists else "NAME"
    return (
        f"`data.messages_column: {name}` reads conversations, `data.prompt_column: ''` with "
        "`data.completion_column: NAME` text alone"
    )


def _is_instruction(columns: Columns) -> bool:
    return columns.prompt.strip().lower() == "instruction"


def configured(what: str, name: str, known: Sequence[str], source: str) -> str:
    """The column that `data.WHAT_column` names.

    Raises:
        ConfigError: the table has none of that name.
    """
    if name in known:
        return name
    rule = f"a column of {source}: {', '.join(known)}"
    raise refuse(f"data.{what}_column", rule, repr(name), nearest(name, known))


def no_column(pair: Columns, known: Sequence[str], source: str) -> list[Problem]:
    """The problems of a table without a prompt or without a completion."""
    wanted = (
        ("prompt", pair.prompt, PROMPT_COLUMNS),
        ("completion", pair.completion, COMPLETION_COLUMNS),
    )
    problems = []
    for what, found, names in wanted:
        if not found:
            rule = f"{source}: a column named {' or '.join(names)}, or `data.{what}_column`"
            near = next((near for name in known if (near := nearest(name.lower(), names))), "")
            problems.append(Problem(f"data.{what}_column", rule, ", ".join(known)[:120], near))
    return problems


def _earlier_columns(known: Sequence[str], config: DataConfig, source: str) -> Columns:
    """The columns that versions before `data.tokenize` read."""
    finder = _Finder(known, config, source, ())
    if config.messages_column is not None:
        messages = configured("messages", config.messages_column, known, source)
        return Columns("chat", messages=messages)

    def chosen(what: str, given: str | None, names: Sequence[str]) -> str:
        if given is not None:
            return configured(what, given, known, source)
        return next(iter(finder.found(names)), "")

    prompt = chosen("prompt", config.prompt_column, _EARLIER_PROMPTS)
    completion = chosen("completion", config.completion_column, _EARLIER_COMPLETIONS)
    pair = Columns("pair", prompt, completion)
    if pair.prompt and pair.completion:
        names_about = (INPUT_COLUMN,) if pair.prompt.lower() == "instruction" else ()
        return replace(pair, context=next(iter(finder.found(names_about)), ""))
    messages = next(iter(finder.found(_EARLIER_MESSAGES)), "")
    if messages and config.prompt_column is None and config.completion_column is None:
        return Columns("chat", messages=messages)
    raise ConfigError(no_column(pair, known, source))
