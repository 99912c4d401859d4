"""Rows laid out as text, in prompt tags or by a chat template, with what counts in the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trial.data.examples import Row
from trial.data.messages import Message
from trial.data.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, PromptFormat
from trial.data.text.chat_template import ChatTemplate, without_eos
from trial.data.text.encoder import Layout


class Layouts:
    """Lays rows out for one tokenizer and prompt format."""

    def __init__(self, prompt_format: str, train_on: str, template: ChatTemplate) -> None:
        self.train_on = train_on
        self.special = template.special
        self.eos: str = template.tokenizer.eos_token
        self.template = template
        self._tags = None if prompt_format == CHAT_TEMPLATE else PROMPT_FORMATS[prompt_format]

    @property
    def date(self) -> str:
        """The date that the chat template was given as today's; empty if it never asked."""
        return self.template.date

    def lay_out(self, row: Row) -> Layout:
        """The row as text.

        Raises:
            ConfigError: the chat template refuses it.
        """
        if row.kind == "text":
            text = self.special.protect(without_eos(row.completion, self.eos))
            return Layout(text, ((0, len(text)),), with_prefix=True)
        counted = [n for n, m in enumerate(row.messages) if m.role == "assistant" and m.trained]
        counted = counted[-1:] if self.train_on == "last" else counted
        if self._tags is None:
            return self.template.lay_out(row, counted)
        return self._in_tags(row, counted, self._tags)

    def _in_tags(self, row: Row, counted: Sequence[int], tags: PromptFormat) -> Layout:
        """Turn after turn in tags; a system message stands before the question that follows it.

        An answer that another turn follows ends in the format's own mark, or in eos where that is
        white space. A result of a tool stands where a question would.
        """
        text, spans = "", []
        system = f"{self.special.protect(row.tools)}\n\n" if row.tools else ""
        for n, message in enumerate(row.messages):
            content = self.special.protect(self._words(message))
            if message.role == "system":
                system += f"{content}\n\n"
                continue
            if message.role != "assistant":
                text += f"{tags.question_start}{system}{content}{tags.question_end}"
                system = ""
                continue
            # One space between the tags and the answer, whoever has written it.
            text = (text.rstrip(" ") if content[:1].isspace() else text) + system
            system, start = "", len(text)
            text += content
            if n + 1 < len(row.messages):
                mark = tags.answer_end.rstrip()
                end = len(text) + len(mark or self.eos)
                text += tags.answer_end if mark else f"{self.eos}{tags.answer_end}"
            else:
                end = len(text)
            spans += [(start, end)] if n in counted else []
        return Layout(text, tuple(spans), with_prefix=True)

    def _words(self, message: Message) -> str:
        """A message as plain text: an assistant's reasoning, its answer, and its tool calls."""
        if message.role != "assistant":
            return message.content
        extra = json.loads(message.extra) if message.extra else {}
        calls = [call["function"] for call in extra.get("tool_calls", ())]
        thoughts = [str(extra[key]) for key in ("reasoning_content", "thinking") if key in extra]
        lines = [json.dumps(call, ensure_ascii=False) for call in calls]
        answer = without_eos(message.content, self.eos)
        return "\n".join([*thoughts, *([answer] if answer or not lines else []), *lines])
