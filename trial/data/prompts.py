"""Prompt formats by model family, and which of them `auto` means.

`PROMPT_FORMATS` holds the text around a question; `chat_template` is the tokenizer's own and has no
entry there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trial.config.errors import ConfigError, Problem, unknown
from trial.data.messages import Message


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The text around each question, and after an answer that another question follows."""

    question_start: str = ""
    question_end: str = ""
    answer_end: str = "\n"


_QUESTION_ANSWER = PromptFormat("Question: ", "\nAnswer: ")

PROMPT_FORMATS: dict[str, PromptFormat] = {
    "question_answer": _QUESTION_ANSWER,
    "phi": _QUESTION_ANSWER,
    "stablelm": _QUESTION_ANSWER,
    "pythia": _QUESTION_ANSWER,
    "llama2": PromptFormat("[INST] ", " [/INST]", " "),
    "llama3": PromptFormat(
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "qwen": PromptFormat(
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
    ),
    "plain": PromptFormat(),
}
AUTO = "auto"
CHAT_TEMPLATE = "chat_template"
FALLBACK = "question_answer"

_FAMILY_NAMES: dict[str, tuple[str, ...]] = {
    "llama3": ("llama-3", "llama3", "llama_3"),
    "llama2": ("llama-2", "llama2", "llama_2"),
    "qwen": ("qwen",),
    "stablelm": ("stablelm",),
    "pythia": ("pythia", "gpt_neox", "gpt-neox"),
    "phi": ("phi-", "phi3", "phi_"),
}


def known_formats() -> tuple[str, ...]:
    """Every value that `data.prompt_format` may have."""
    return (AUTO, CHAT_TEMPLATE, *PROMPT_FORMATS)


def format_problem(name: str) -> Problem | None:
    """The problem of an unknown format, with the nearest known one."""
    if name in known_formats():
        return None
    problem = unknown(name, known_formats(), "prompt format")
    rule = f"{problem.expected}; `data.chat_template: FILE.jinja` takes one of your own"
    return Problem("data.prompt_format", rule, problem.got, problem.near)


def family_format(family: str) -> str:
    """The format of a model family, by any text that names it (model type, folder, hub id)."""
    named = family.lower()
    for name, parts in _FAMILY_NAMES.items():
        if named == name or any(part in named for part in parts):
            return name
    return FALLBACK


def choose_format(name: str, *, has_template: bool, family: str = "") -> str:
    """The format that `name` means for this tokenizer and model family.

    `auto` is the tokenizer's chat template where there is one, else the family's tags, else
    `Question: ... Answer: ...`; chat rows are laid out in the same tags, turn after turn.

    Raises:
        ConfigError: the name is unknown, or asks for a template that the tokenizer lacks.
    """
    if problem := format_problem(name):
        raise ConfigError([problem])
    if name == AUTO:
        return CHAT_TEMPLATE if has_template else family_format(family)
    if name == CHAT_TEMPLATE and not has_template:
        rule = (
            "a format that needs no chat template, since the tokenizer has none and "
            "`data.chat_template` gives none"
        )
        raise ConfigError([Problem("data.prompt_format", rule, repr(name))])
    return name


def render(tags: PromptFormat, turns: Sequence[Message]) -> str:
    """The prompt as text, for `tokenize: apart`; a system message stands before its question."""
    text, system = "", ""
    for turn in turns:
        if turn.role == "system":
            system += f"{turn.content}\n\n"
        elif turn.role == "user":
            text += f"{tags.question_start}{system}{turn.content}{tags.question_end}"
            system = ""
        else:
            text += f"{turn.content}{tags.answer_end}"
    return text
