"""Prompt formats as truth tables."""

import pytest

from trial.config.errors import ConfigError
from trial.data.messages import Message
from trial.data.prompts import (
    FALLBACK,
    PROMPT_FORMATS,
    choose_format,
    family_format,
    format_problem,
    known_formats,
    render,
)

ASKED = (Message("user", "Why?"),)
CHAT = (
    Message("system", "Be brief."),
    Message("user", "A?"),
    Message("assistant", "B."),
    Message("user", "C?"),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama2", "[INST] Why? [/INST]"),
        ("phi", "Question: Why?\nAnswer: "),
        ("stablelm", "Question: Why?\nAnswer: "),
        ("pythia", "Question: Why?\nAnswer: "),
        ("question_answer", "Question: Why?\nAnswer: "),
        ("plain", "Why?"),
        ("qwen", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        (
            "llama3",
            "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_a_question_in_every_format(name, expected):
    assert render(PROMPT_FORMATS[name], ASKED) == expected


def test_the_table_above_is_whole():
    tested = {"llama2", "phi", "stablelm", "pythia", "question_answer", "plain", "qwen", "llama3"}
    assert tested == set(PROMPT_FORMATS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama2", "[INST] Be brief.\n\nA? [/INST]B. [INST] C? [/INST]"),
        ("phi", "Question: Be brief.\n\nA?\nAnswer: B.\nQuestion: C?\nAnswer: "),
    ],
)
def test_a_conversation_in_tags(name, expected):
    assert render(PROMPT_FORMATS[name], CHAT) == expected


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama meta-llama/Llama-2-7b-hf", "llama2"),
        ("llama Meta-Llama-3-8B", "llama3"),
        ("llama Llama-3.2-1B", "llama3"),
        ("qwen2 Qwen2.5-0.5B", "qwen"),
        ("qwen3", "qwen"),
        ("gpt_neox pythia-70m", "pythia"),
        ("gpt_neox", "pythia"),
        ("phi", "phi"),
        ("phi3 Phi-3-mini", "phi"),
        ("stablelm stablelm-2-1_6b", "stablelm"),
        ("llama tiny-llama", FALLBACK),
        ("gpt2", FALLBACK),
        ("dolphin-base", FALLBACK),
        ("", FALLBACK),
    ],
)
def test_family_formats(family, expected):
    assert family_format(family) == expected


@pytest.mark.parametrize(
    ("name", "has_template", "family", "expected"),
    [
        ("auto", True, "llama Llama-2-7b", "chat_template"),
        ("auto", False, "llama Llama-2-7b", "llama2"),
        ("auto", False, "gpt2", "question_answer"),
        ("chat_template", True, "gpt2", "chat_template"),
        ("plain", True, "qwen2", "plain"),
        ("phi", True, "qwen2", "phi"),
    ],
)
def test_what_a_name_means(name, has_template, family, expected):
    assert choose_format(name, has_template=has_template, family=family) == expected


def test_every_known_name_can_be_chosen():
    chosen = {choose_format(name, has_template=True) for name in known_formats()}
    assert chosen == set(known_formats()) - {"auto"}


def test_an_unknown_format_is_refused_with_the_nearest():
    problem = format_problem("lama2")
    assert problem is not None
    assert (problem.key, problem.got, problem.near) == ("data.prompt_format", "'lama2'", "llama2")
    with pytest.raises(ConfigError, match="did you mean llama2"):
        choose_format("lama2", has_template=False)


def test_a_template_that_the_tokenizer_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"data\.prompt_format"):
        choose_format("chat_template", has_template=False)
