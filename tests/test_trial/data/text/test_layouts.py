"""What of a row counts: templates of many kinds, special tokens as text, refused rows."""

import json

import pytest
from helpers.training.letters import LETTERS, SPECIAL, SlowLetters, letter_tokenizer

from trial.config.errors import ConfigError
from trial.data.examples import Row, pair
from trial.data.messages import Message
from trial.data.tokens import TokenSettings, tokenize_rows


def marked(rows, tokenizer, prompt_format="chat_template", **settings):
    """Each row as text, with what counts between brackets and special tokens as their names."""
    tokens = tokenize_rows(rows, TokenSettings(prompt_format, 999, **settings), tokenizer)
    texts = []
    for start, end in tokens.spans:
        text, is_open = "", False
        trained = tokens.trained[start:end].tolist()
        for i, counts in zip(tokens.ids[start:end], trained, strict=True):
            text += "[" * (counts and not is_open) + "]" * (is_open and not counts)
            is_open = counts
            name = [*SPECIAL, *LETTERS][i]
            text += f"{{{name}}}" if name in SPECIAL else name
        texts.append(text + "]" * is_open)
    return texts


def chat(*contents, system=""):
    """A chat whose messages alternate, the user's first."""
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], content) for n, content in enumerate(contents)]
    return Row((*([Message("system", system)] if system else []), *turns), "chat")


LOOP = "{% for m in messages %}BODY{% endfor %}"
GENERATE = "{% if add_generation_prompt %}A:{% endif %}"
SIMPLE = LOOP.replace("BODY", "{{ m.role[0] | upper }}:{{ m.content }}<|end|>\n") + GENERATE
MARKED = LOOP.replace(
    "BODY",
    "{{ m.role[0] | upper }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>\n",
)
CUTS_THOUGHTS = SIMPLE.replace(
    "{{ m.content }}",
    "{% if loop.last and m.role == 'assistant' %}(hm){% endif %}{{ m.content }}",
)
THINKS = SIMPLE.replace("A:{% endif %}", "A:(think){% endif %}")
FORGETS = SIMPLE.replace("m.content", "m.content.split('/')[-1]")
TRIMS = SIMPLE.replace("m.content", "(m.content | trim)")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (SIMPLE, "U:a{<|end|>}A:[b{<|end|>}]U:c{<|end|>}A:[d{<|end|>}{</s>}]"),
        # The markers say that the end of a turn is not the answer's; an eos of ours always is.
        (MARKED, "U:a{<|end|>}A:[b]{<|end|>}U:c{<|end|>}A:[d]{<|end|>}[{</s>}]"),
        (CUTS_THOUGHTS, "U:a{<|end|>}A:[b{<|end|>}]U:c{<|end|>}A:[(hm)d{<|end|>}{</s>}]"),
        # What it writes to have an answer generated is no part of past answers.
        (THINKS, "U:a{<|end|>}A:[b{<|end|>}]U:c{<|end|>}A:(think)[d{</s>}]"),
        (TRIMS, "U:a{<|end|>}A:[b{<|end|>}]U:c{<|end|>}A:[d{<|end|>}{</s>}]"),
    ],
    ids=["simple", "marked", "cuts thoughts", "thinks", "trims"],
)
def test_answers_in_templates_of_many_kinds(template, expected):
    tokenizer = letter_tokenizer(template)
    (found,) = marked([chat("a", "b", "c", "d")], tokenizer)
    assert found.replace("\n", "") == expected
    (last,) = marked([chat("a", "b", "c", "d")], tokenizer, train_on="last")
    assert last.count("[") == expected.count("[") - 1
    assert last.replace("\n", "").endswith(expected[expected.rindex("U:") :])


def test_of_past_answers_only_what_the_template_keeps_counts():
    """As in templates of reasoning models, which cut the thoughts out of past answers."""
    (found,) = marked([chat("a", "t/b", "c", "u/d")], letter_tokenizer(FORGETS))
    assert found.replace("\n", "") == "U:a{<|end|>}A:[b{<|end|>}]U:c{<|end|>}A:[d{<|end|>}{</s>}]"


def test_an_answer_that_a_template_repeats_is_found_after_its_prompt():
    template = CUTS_THOUGHTS.replace("{% for", "{% if messages | length > 2 %}!{% endif %}{% for")
    (found,) = marked([chat("b", "b", "b", "b")], letter_tokenizer(template))
    expected = "!U:b{<|end|>}A:[b{<|end|>}]U:b{<|end|>}A:[(hm)b{<|end|>}{</s>}]"
    assert found.replace("\n", "") == expected


ODD = pair("Is </s> text?", "Yes, </s> and <s> and <|end|> are.")


@pytest.mark.parametrize("tokenizer", [letter_tokenizer, SlowLetters])
@pytest.mark.parametrize(
    ("prompt_format", "expected"),
    [
        ("plain", "Is </s> text?[Yes, </s> and <s> and <|end|> are.{</s>}]"),
        (
            "chat_template",
            "U:Is </s> text?{<|end|>}A:[Yes, </s> and <s> and <|end|> are.{<|end|>}{</s>}]",
        ),
    ],
)
def test_special_tokens_in_a_rows_own_text_are_text(tokenizer, prompt_format, expected):
    made = tokenizer()
    made.chat_template = SIMPLE.replace("\n", "")
    assert marked([ODD, ODD], made, prompt_format) == [expected] * 2


def test_slow_and_fast_tokenizers_mark_the_same():
    rows = [chat("a b", "c d", "e", "f", system="s"), pair("x ", "y"), ODD]
    slow, fast = SlowLetters(chat_template=SIMPLE), letter_tokenizer(SIMPLE)
    for prompt_format in ("chat_template", "question_answer", "llama2"):
        assert marked(rows, slow, prompt_format) == marked(rows, fast, prompt_format)


@pytest.mark.parametrize("end", ["</s>", "</s>\n", " </s>"])
def test_an_eos_at_the_end_of_an_answer_is_control(end):
    (found,) = marked([pair("a", f"b{end}")], letter_tokenizer(), "plain")
    assert found == "a[b" + " " * end.startswith(" ") + "{</s>}]"


REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)
CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
TOOLS = "{{ tools | tojson }}\n"
DROPS_RESULTS = LOOP.replace(
    "BODY",
    f"{{% if m.role != 'tool' %}}{{{{ m.role[0] }}}}:{{{{ m.content }}}}{CALLS}{{% endif %}}",
)
LOOKED = Row(
    (
        *chat("a").messages,
        Message(
            "assistant", "", extra=json.dumps({"tool_calls": [{"function": {"name": "look"}}]})
        ),
        Message("tool", "ok"),
        Message("assistant", "b"),
    ),
    "chat",
    '[{"function": {"name": "look"}}]',
)
"""A row in which the name of its only tool, and the letters of its result, come more than once."""
DROPS_SYSTEM = LOOP.replace("BODY", "{% if m.role != 'system' %}{{ m.content }}.{% endif %}")


@pytest.mark.parametrize(
    ("template", "row", "reason"),
    [
        (REFUSES_SYSTEM + SIMPLE, chat("a", "b", system="s"), "no system"),
        (DROPS_SYSTEM, chat("a", "b", system="It rains."), "leaves out a message of the system"),
        (
            SIMPLE,
            Row((*chat("a").messages, Message("assistant", "", extra=json.dumps(
                {"tool_calls": [{"type": "function", "function": {"name": "look"}}]}
            ))), "chat"),
            "leaves out the tool calls",
        ),
        (SIMPLE, Row(chat("a", "b").messages, "chat", '[{"function": {"name": "look"}}]'),
         "leaves out the tools"),
        (SIMPLE.replace("{{ m.content }}", "{{ m.content }}" + CALLS), LOOKED,
         "leaves out the tools"),
        (TOOLS + SIMPLE, LOOKED, "leaves out the tool calls"),
        (TOOLS + DROPS_RESULTS, LOOKED, "leaves out a message of the tool"),
        (SIMPLE, Row((*chat("a").messages, Message("assistant", "b", extra='{"thinking": "so"}')),
                     "chat"), "leaves out what was thought"),
        ("{{ messages[0].content + 1 }}", chat("a", "b"), "it says"),
    ],
)  # fmt: skip
def test_a_row_that_a_template_refuses_or_cuts_is_refused_with_its_words(template, row, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        marked([row], letter_tokenizer(template))
    (problem,) = caught.value.problems
    assert problem.key == "data.prompt_format"
    assert "question_answer" in problem.expected
    marked([row], letter_tokenizer(template), "question_answer")
