"""The user's own chat template: the same tokens as plain transformers makes, and its mistakes."""

import json

import pytest
from transformers import AutoTokenizer

from trial.builtin import model_path
from trial.config.errors import ConfigError
from trial.config.paths import resolve
from trial.config.sections import DataConfig
from trial.data.prepare import prepare
from trial.data.text.template_file import read_template, template_problems

PLAIN = """{# Tags of nobody else. #}
{% for message in messages %}
{% if message['role'] == 'system' %}
{{ raise_exception('no system role here') }}
{% elif message['role'] == 'assistant' %}
{{ '<a>' + message['content'] + eos_token + '\\n' }}
{% else %}
{{ '<' + message['role'] + '>' + message['content'] + '\\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<a>{% endif %}
"""
ANSWER = "{{ '<a>' + message['content'] + eos_token + '\\n' }}"
MARKED = PLAIN.replace(
    ANSWER,
    "<a>{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token + '\\n' }}",
)
CHATS = [[f"q{n}", f"an answer, {n}", "more", "It is."] for n in range(10)]
MESSAGES = [
    [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(chat)]
    for chat in CHATS
]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(model_path())


def config(tmp_path, template, messages=MESSAGES, **more):
    rows, file = tmp_path / "rows.jsonl", tmp_path / "mine.jinja"
    rows.write_text("\n".join(json.dumps({"messages": chat}) for chat in messages))
    file.write_text(template)
    return DataConfig(**{"path": str(rows), "chat_template": str(file), "max_length": 96, **more})


def prepared(tmp_path, template, tokenizer, **more):
    return prepare(config(tmp_path, template, **more), tokenizer, tmp_path / "cache")


def rows_of(tokens):
    """Ids and labels of each row, with what counts, sorted."""
    return sorted(
        (tokens.ids[a:b].tolist(), tokens.trained[a:b].tolist()) for a, b in tokens.spans.tolist()
    )


def all_rows(data):
    return sorted(rows_of(data.train.tokens) + rows_of(data.eval.tokens))


def test_generation_markers_mark_what_transformers_marks(tmp_path, tokenizer):
    data = prepared(tmp_path, MARKED, tokenizer)
    expected = []
    for chat in MESSAGES:
        made = tokenizer.apply_chat_template(
            chat, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = list(made["input_ids"]), [bool(m) for m in made["assistant_masks"]]
        # The row ends with its eos, which counts; the template's white space after it goes.
        end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
        assert tokenizer.decode(ids[end:]).strip() == ""
        expected.append((ids[:end], mask[:end]))
    assert all_rows(data) == sorted(expected)


def test_without_markers_an_answer_is_what_follows_its_prompt(tmp_path, tokenizer):
    data = prepared(tmp_path, PLAIN, tokenizer)
    expected = []
    for chat in MESSAGES:
        whole = tokenizer.apply_chat_template(chat, chat_template=PLAIN, tokenize=False).rstrip()
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        mask = [False] * len(ids)
        for n in (1, 3):
            prompt = tokenizer.apply_chat_template(
                chat[:n], chat_template=PLAIN, add_generation_prompt=True
            )
            text = tokenizer.apply_chat_template(
                chat[: n + 1], chat_template=PLAIN, tokenize=False
            ).rstrip()
            through = tokenizer(text, add_special_tokens=False)["input_ids"]
            mask[len(prompt) : len(through)] = [True] * (len(through) - len(prompt))
        expected.append((ids, mask))
    assert all_rows(data) == sorted(expected)


def test_the_template_is_in_the_hash_and_the_summary(tmp_path, tokenizer):
    before = tokenizer.chat_template
    data = prepared(tmp_path, PLAIN, tokenizer)
    same = prepared(tmp_path, PLAIN, tokenizer)
    other = prepared(tmp_path, PLAIN.replace("<a>", "<b>"), tokenizer)
    assert same.data_hash == data.data_hash != other.data_hash
    assert data.summary.format_words == "chat_template mine.jinja"
    assert data.summary.chat_template_hash != other.summary.chat_template_hash
    assert tokenizer.chat_template == before


def test_the_text_itself_and_the_earlier_tokens(tmp_path, tokenizer):
    data = prepared(tmp_path, PLAIN, tokenizer)
    inline = prepared(tmp_path, "", tokenizer, chat_template=PLAIN)
    assert inline.data_hash == data.data_hash
    apart = prepared(tmp_path, PLAIN, tokenizer, tokenize="apart", train_on="last")
    text = tokenizer.decode(all_rows(apart)[0][0])
    assert text.startswith("<user>")
    assert "<a>" in text


def test_a_row_that_the_template_refuses_names_its_line(tmp_path, tokenizer):
    chats = [[{"role": "system", "content": "Be kind."}, *chat] for chat in MESSAGES]
    with pytest.raises(ConfigError) as caught:
        prepared(tmp_path, PLAIN, tokenizer, messages=chats)
    (problem,) = caught.value.problems
    assert problem.key == "data.chat_template"
    assert "mine.jinja line 4" in problem.expected
    assert "no system role here" in problem.expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (PLAIN.replace("endfor", "endfr"), ("line 10", "endfr")),
        (PLAIN.replace("message['content'] + '", "message['content' + '"), ("line 8",)),
        (PLAIN + "{{ 1 | nofilter }}", ("line 12", "nofilter")),
        (PLAIN.replace("in messages", "in mesages"), ("`messages`", "mesages")),
        ("hello", ("`messages`",)),
        ("", ("`messages`",)),
    ],
)
def test_mistakes_are_found_without_a_row(tmp_path, text, parts):
    (tmp_path / "mine.jinja").write_text(text)
    (problem,) = template_problems(str(tmp_path / "mine.jinja"))
    assert problem.key == "data.chat_template"
    assert "mine.jinja" in problem.expected
    assert all(part in str(problem) for part in parts)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    (tmp_path / "mine.jinja").write_bytes(b"{{ messages }}\xff")
    for name in ("mine.jinja", "gone.jinja"):
        with pytest.raises(ConfigError, match="a Jinja template, in UTF-8"):
            read_template(str(tmp_path / name))
    _, problem = resolve("base.data.chat_template", "gone", [tmp_path])
    assert problem is not None
    assert resolve("data.chat_template", "{{ messages }}/a/b", [tmp_path])[1] is None


def test_beside_another_format_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="chat_template or auto"):
        config(tmp_path, PLAIN, prompt_format="llama2")
    assert config(tmp_path, PLAIN, prompt_format="chat_template").chat_template
