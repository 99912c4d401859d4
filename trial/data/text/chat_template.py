"""A tokenizer's chat template, with a fixed date, and the characters of each answer in its text."""

from __future__ import annotations

import datetime
import json
import re
import traceback
from collections.abc import Sequence
from typing import Any

from trial.config.errors import ConfigError, Problem
from trial.data.examples import Row
from trial.data.messages import Message
from trial.data.text.encoder import Layout, Spans
from trial.data.text.left_out import FAILURES, left_out
from trial.data.text.special_tokens import SpecialTokens
from trial.data.text.template_file import KEY

FIXED_DATE = datetime.datetime(2024, 7, 26)
"""Today, for templates that ask: the day that the templates of Llama 3.1 have as their own."""
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "\U0010fff1"
"""Words that no answer has."""


class ChatTemplate:
    """Lays rows out as a tokenizer's chat template writes them."""

    def __init__(self, tokenizer: Any, special: SpecialTokens, name: str = "") -> None:
        """Construct it; `name` is that of the user's own template, for errors."""
        self.name = name
        self.tokenizer = tokenizer
        self.special = special
        self.date = ""
        """The fixed date, once the template has asked for today's."""

    def lay_out(self, row: Row, counted: Sequence[int]) -> Layout:
        """The row as text; `counted` are the numbers of the messages that count in the loss.

        Answers are found by the template's generation markers, else as what the template writes
        after the prompt of each.

        Raises:
            ConfigError: the template refuses the row, or leaves a part of it out.
        """
        messages = [self._entry(message) for message in row.messages]
        tools = json.loads(self.special.protect(row.tools)) if row.tools else None
        try:
            laid = self._by_markers(messages, tools, row, counted)
            laid = laid or self._by_prompts(messages, tools, row, counted)
        except FAILURES as error:
            if isinstance(error, ConfigError):
                raise
            raise self._refused(row, f"it says: {error}", error) from error
        self._refuse_losses(row, messages, tools, laid)
        return laid

    def render(
        self, messages: list[dict[str, Any]], *, tools: Any = None, prompt: bool = False
    ) -> str:
        """The template's text; `prompt` adds what stands before an answer."""
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=prompt,
            strftime_now=self.strftime_now,
        )
        return text

    def strftime_now(self, format: str) -> str:
        """What templates call for today's date: the fixed one."""
        self.date = FIXED_DATE.date().isoformat()
        return FIXED_DATE.strftime(format)

    def _entry(self, message: Message) -> dict[str, Any]:
        """A message as templates take it."""
        extra = json.loads(self.special.protect(message.extra)) if message.extra else {}
        content = message.content
        if message.role == "assistant":
            content = without_eos(content, self.tokenizer.eos_token)
        return {"role": message.role, "content": self.special.protect(content), **extra}

    def _by_markers(
        self, messages: list[dict[str, Any]], tools: Any, row: Row, counted: Sequence[int]
    ) -> Layout | None:
        """The layout by `{% generation %}` markers; None where they are not one for each answer."""
        template = self.tokenizer.get_chat_template(None, tools)
        if not _MARKERS.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            strftime_now=self.strftime_now,
            **self.tokenizer.special_tokens_map,
        )
        answers = [n for n, message in enumerate(row.messages) if message.role == "assistant"]
        if len(spans[0]) != len(answers):
            return None
        by_message = dict(zip(answers, spans[0], strict=True))
        return _layout(texts[0], [by_message[n] for n in counted])

    def _by_prompts(
        self, messages: list[dict[str, Any]], tools: Any, row: Row, counted: Sequence[int]
    ) -> Layout:
        """The layout by what the template writes for the messages up to each answer."""
        last = messages[-1]
        prompt = self.render(messages[:-1], tools=tools, prompt=True)
        whole = self.render(messages, tools=tools, prompt=False)
        start, text = len(prompt), whole
        if not whole.startswith(prompt):
            # Some templates write a past answer otherwise than one that is being generated.
            if "tool_calls" in last:
                start = _common(prompt, whole)
            else:
                text = prompt + last["content"]
        spans = []
        for n in counted:
            first, end = start, len(text)
            if n < len(messages) - 1:
                first, end = self._span(messages, n, whole, tools)
                if first >= end or not text.startswith(whole[:end]):
                    raise self._refused(row, "it leaves out an answer")
            spans.append((first, end))
        return _layout(text, spans)

    def _span(
        self, messages: list[dict[str, Any]], n: int, whole: str, tools: Any
    ) -> tuple[int, int]:
        """The characters of an answer that is not the last, its end-of-turn mark included."""
        try:
            before = self.render(messages[:n], tools=tools, prompt=True)
            through = self.render(messages[: n + 1], tools=tools, prompt=False).rstrip()
        except FAILURES:
            before = through = ""
        if before and whole.startswith(through) and through.startswith(before):
            return len(before), len(through)
        # The template writes it otherwise among others. Where another answer in its place makes a
        # difference, there it is; a special token after that is its mark.
        other = self.render([*messages[:n], _other(messages[n]), *messages[n + 1 :]], tools=tools)
        first = _common(whole, other)
        end = max(first, len(whole) - _common(whole[::-1], other[::-1]))
        mark = self.special.pattern.match(whole, end)
        return first, mark.end() if mark and end > first else end

    def _refuse_losses(
        self, row: Row, messages: list[dict[str, Any]], tools: Any, laid: Layout
    ) -> None:
        """Refuse a row of which the template leaves out a message, a tool or a tool call."""
        if not laid.trained:
            raise self._refused(row, "it leaves out the answer")
        if what := left_out(messages, tools, laid.text, lambda m, t: self.render(m, tools=t)):
            raise self._refused(row, f"it leaves out {what}")

    def _refused(self, row: Row, reason: str, error: Exception | None = None) -> ConfigError:
        """The refusal of a row, with the line of the user's own template."""
        first = next((m.content for m in row.messages if m.content.strip()), "")
        if self.name:
            rule = f"{self.name}{_line(error)}: a chat template that takes every row ({reason})"
            return ConfigError([Problem(KEY, rule, f"the row {first[:60]!r}")])
        rule = (
            f"a format that takes every row; the tokenizer's chat template does not ({reason}), "
            f"`question_answer` does; `{KEY}: FILE.jinja` takes one of your own"
        )
        return ConfigError([Problem("data.prompt_format", rule, f"the row {first[:60]!r}")])


def without_eos(text: str, eos: str) -> str:
    """An answer without the eos that its author has written at its end: the format writes one."""
    bare = text.rstrip()
    return bare.removesuffix(eos) if eos and bare.endswith(eos) else text


def _other(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message with other words, and with another call where it has calls."""
    other = {"role": message["role"], "content": _PROBE}
    if calls := message.get("tool_calls"):
        function = {"name": _PROBE, "arguments": {}}
        other["tool_calls"] = [{**call, "function": function} for call in calls]
    return other


def _layout(text: str, spans: Sequence[tuple[int, int]]) -> Layout:
    """The layout of a template's text, without white space at the end."""
    text = text.rstrip()
    trained: Spans = tuple((a, min(b, len(text))) for a, b in spans if a < min(b, len(text)))
    return Layout(text, trained, with_prefix=False)


def _common(left: str, right: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)))


def _line(error: Exception | None) -> str:
    """The line of a template at which it failed, in words; empty if that is not known."""
    frames = traceback.extract_tb(error.__traceback__) if error else ()
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return f" line {lines[-1]}" if lines else ""
