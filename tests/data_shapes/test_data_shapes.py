"""Ten rows in each public format, with the text and the mask that must come out.

`expected/NAME.txt` is written by hand, a line a row: what counts in the loss stands between « and
»; ⏎ is a newline, `</s>` the eos, and `<\\/s>` the same characters as text. `.tags`, `.plain` and
`.last` are other prompt formats, and `train_on: last`. The tokens are put together
here piece by piece, without the code under test.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zipfile
from pathlib import Path

import pyarrow
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trial.builtin import model_path
from trial.config.errors import ConfigError
from trial.config.sections import DataConfig
from trial.data.examples import read_rows
from trial.data.tokens import TokenSettings, tokenize_rows

SHAPES = Path(__file__).parent
EXPECTED = sorted((SHAPES / "expected").iterdir())
FORMATS = {"tags": "question_answer", "plain": "plain"}
SETTINGS = {"hh_rlhf": {"messages_column": "chosen"}}
"""Settings under `data` of shapes that are not read by themselves, as the refusal names them."""

SPECIAL = {"<s>": "\x01", "</s>": "\x02"}
"""What stands for a special token until the text is whole."""

ANSWER = (
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}"
    "</s>"
)
TEMPLATE = (
    "{% if tools %}<|tools|>{{ '\\n' }}{{ tools | tojson }}</s>{{ '\\n' }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ '\\n' }}"
    "{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}</s>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)
PLAIN_TEMPLATE = TEMPLATE.replace("ANSWER", ANSWER)
MARKED_TEMPLATE = TEMPLATE.replace("ANSWER", f"{{% generation %}}{ANSWER}{{% endgeneration %}}")


def byte_level() -> PreTrainedTokenizerFast:
    """The tiny Llama's byte-level BPE."""
    return AutoTokenizer.from_pretrained(model_path())


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """A BPE of whole words with `▁` for spaces and one before every text, as in Llama 2.

    `<s` and `</s` are pieces that merges make, one merge away from the special tokens.
    """
    texts = [path.read_text(encoding="utf-8") for path in SHAPES.iterdir() if path.is_file()]
    texts += [path.read_text(encoding="utf-8") for path in EXPECTED]
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=["\n"],
        max_token_length=12,
        show_progress=False,
    )
    inner.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module", params=[byte_level, sentencepiece_like], ids=lambda f: f.__name__)
def tokenizer(request):
    return request.param()


def pieces(tokenizer, ids):
    """The text of each token, as the token itself says."""
    byte_of = {letter: byte for byte, letter in _bytes_to_letters().items()}
    for token in tokenizer.convert_ids_to_tokens(ids):
        if token in SPECIAL:
            yield SPECIAL[token].encode()
        elif tokenizer.backend_tokenizer.decoder.__class__.__name__ == "ByteLevel":
            yield bytes(byte_of[letter] for letter in token)
        else:
            yield token.replace("▁", " ").encode()


def _bytes_to_letters():
    """GPT-2's table: printable bytes stand for themselves, the others follow from 256 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {b: chr(256 + n) for n, b in enumerate(others)}


def marked(tokenizer, ids, trained):
    """A row as in the files of expected texts; its bos and the prefix space are left out."""
    text, is_open = b"", False
    for piece, counts in zip(pieces(tokenizer, ids), trained, strict=True):
        text += "«".encode() * (counts and not is_open) + "»".encode() * (is_open and not counts)
        is_open = counts
        text += piece
    text = (text.decode() + "»" * is_open).removeprefix(SPECIAL["<s>"])
    text = re.sub("^(«?) ", r"\1", text) if tokenizer.unk_token else text
    text = re.sub("<(/?s>)", r"<\\\1", text).replace("\n", "⏎")
    for name, letter in SPECIAL.items():
        text = text.replace(letter, name)
    return text


def with_space_inside(text):
    """The space before an answer may belong to the answer's first token."""
    return text.replace(" «", "« ")


def rows_of(path, **data):
    return read_rows(DataConfig(path=str(path), **data)).rows


def outcome(tokenizer, rows, prompt_format, train_on="all"):
    tokens = tokenize_rows(rows, TokenSettings(prompt_format, 512, train_on), tokenizer)
    return [
        marked(tokenizer, tokens.ids[a:b].tolist(), tokens.trained[a:b].tolist())
        for a, b in tokens.spans
    ]


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda path: path.stem)
@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE], ids=["plain", "marked"])
def test_text_and_mask_of_every_shape(tokenizer, expected, template):
    name, _, variant = expected.stem.partition(".")
    (source,) = SHAPES.glob(f"{name}.*")
    tokenizer.chat_template = template
    train_on = "last" if variant == "last" else "all"
    rows = rows_of(source, train_on=train_on, **SETTINGS.get(name, {}))
    found = outcome(tokenizer, rows, FORMATS.get(variant, "chat_template"), train_on)
    wanted = expected.read_text(encoding="utf-8").splitlines()
    assert list(map(with_space_inside, found)) == list(map(with_space_inside, wanted))


def test_every_shape_has_its_expected_texts():
    shapes = {path.stem for path in SHAPES.iterdir() if path.is_file() and path.suffix != ".py"}
    assert {path.name.partition(".")[0] for path in EXPECTED} == shapes
    assert len(shapes) > 15


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "zip"])
@pytest.mark.parametrize("name", ["oasst_trees.jsonl", "alpaca.json", "user_assistant.csv"])
def test_compressed_files_are_read_as_what_they_hold(tmp_path, ending, name):
    content = (SHAPES / name).read_bytes()
    path = tmp_path / f"{name}.{ending}"
    if ending == "zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(content)
    elif ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__MACOSX/rows", "of the packer")
            archive.writestr(f"folder/{name}", content)
    else:
        path.write_bytes({"gz": gzip, "bz2": bz2, "xz": lzma}[ending].compress(content))
    assert rows_of(path) == rows_of(SHAPES / name)


def test_an_archive_is_read_as_the_file_in_it(tmp_path):
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(SHAPES / "gsm8k.jsonl", "gsm8k.jsonl")
    assert rows_of(path) == rows_of(SHAPES / "gsm8k.jsonl")
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(SHAPES / "text.jsonl", "text.jsonl")
    with pytest.raises(ConfigError, match=r"unpack it.*gsm8k\.jsonl, text\.jsonl"):
        rows_of(path)
    path.write_bytes(b"PK no archive")
    with pytest.raises(ConfigError, match="a ZIP archive"):
        rows_of(path)


def test_the_space_before_an_answer_is_in_its_first_token():
    """The tiny Llama knows " The" as one token; a prompt that ended in a space would not lead
    to it."""
    tokenizer = byte_level()
    (together,) = tokenizer.encode(" The", add_special_tokens=False)
    rows = rows_of(SHAPES / "squad.jsonl")
    row = next(row for row in rows if row.completion == "The Moon")
    tokens = tokenize_rows([row], TokenSettings("question_answer", 512), tokenizer)
    first = int(tokens.trained.argmax())
    assert tokens.ids[first] == together
    assert tokenizer.decode(tokens.ids[:first].tolist()).endswith("\nAnswer:")
