"""Rows as token ids, and a torch dataset of them whose labels mask what does not count."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trial.data.examples import Row
from trial.data.text.apart import encode_apart
from trial.data.text.chat_template import ChatTemplate
from trial.data.text.encoder import BoolArray, Encoded, Encoder
from trial.data.text.layouts import Layouts

IGNORE_INDEX = -100
"""The label that losses ignore, as in torch's `cross_entropy` and in transformers."""
CHUNK = 4096
"""Rows that are tokenized in one call."""
MIN_TRAINED_SHARE = 4
"""A truncated row keeps at least `max_length` / 4 tokens that count, if it has as many."""

Int32Array = np.ndarray[Any, np.dtype[np.int32]]
Int64Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """How rows become tokens, besides the tokenizer."""

    prompt_format: str
    """Never `auto`."""
    max_length: int
    train_on: str = "all"
    """As `data.train_on`."""
    tokenize: str = "together"
    """As `data.tokenize`."""
    template_name: str = ""
    """Name of the user's chat template, for errors; empty for the tokenizer's own."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of all rows end to end, which of them count, and where each row is."""

    ids: Int32Array
    """[tokens]"""
    trained: BoolArray
    """[tokens]: whether the token counts in the loss."""
    spans: Int64Array
    """[rows, 2]: start and end."""
    truncated: int = 0
    """Rows that were longer than `max_length`."""
    lost: int = 0
    """Rows that lost tokens which would have counted."""
    text_bytes: int = 0
    """UTF-8 bytes of the text that counts, special tokens left out."""
    text_hash: str = ""
    """SHA-256 of those texts in hexadecimal: the same for every tokenizer and order of the rows."""
    date: str = ""
    """The date that the chat template was given as today's."""

    def counted(self) -> int:
        """Number of tokens that count in the loss."""
        return int(self.trained.sum())

    def content_hash(self) -> str:
        """SHA-256 of ids, labels and rows, in hexadecimal."""
        digest = hashlib.sha256()
        for array, kind in ((self.ids, "<i4"), (self.trained, "|b1"), (self.spans, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()

    def rows_hash(self) -> str:
        """SHA-256 of the rows' ids and labels, the same in whatever order they are."""
        ids = np.ascontiguousarray(self.ids, dtype="<i4")
        trained = np.ascontiguousarray(self.trained, dtype="|b1")
        rows = sorted(
            hashlib.sha256(ids[start:end].tobytes() + trained[start:end].tobytes()).digest()
            for start, end in self.spans.tolist()
        )
        return hashlib.sha256(b"".join(rows)).hexdigest()


class TokenDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows as dicts of LongTensors `input_ids`, `attention_mask`, `labels`, each [max_length].

    Padded on the right. Labels are -100 except for the tokens that count in the loss.
    """

    def __init__(self, tokens: Tokens, max_length: int, pad_id: int) -> None:
        self.tokens = tokens
        self.max_length = max_length
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.tokens.spans)

    def row_lengths(self) -> list[int]:
        """Tokens of every row, padding left out."""
        spans = self.tokens.spans
        return (spans[:, 1] - spans[:, 0]).tolist()

    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.row_lengths())

    def prompt_and_answer(self, row: int) -> tuple[list[int], list[int]]:
        """The tokens before a row's last answer, from which it is generated, and the answer's."""
        start, end = (int(edge) for edge in self.tokens.spans[row])
        ids, trained = self.tokens.ids[start:end].tolist(), self.tokens.trained[start:end]
        counted = np.flatnonzero(trained)
        last = int(counted[-1])
        before = np.flatnonzero(~trained[:last])
        first = int(before[-1]) + 1 if len(before) else 0
        return ids[:first], ids[first : last + 1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, end = (int(edge) for edge in self.tokens.spans[index])
        ids = torch.from_numpy(self.tokens.ids[start:end].astype(np.int64))
        trained = torch.from_numpy(np.array(self.tokens.trained[start:end]))
        size = end - start
        input_ids = torch.full((self.max_length,), self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(self.max_length, dtype=torch.long)
        labels = torch.full((self.max_length,), IGNORE_INDEX, dtype=torch.long)
        input_ids[:size] = ids
        attention_mask[:size] = 1
        labels[:size] = torch.where(trained, ids, IGNORE_INDEX)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


TokenizeRows = Callable[[list[Row]], tuple[TokenDataset, str]]
"""Rows to a dataset and its content hash."""


def tokenize_rows(rows: Sequence[Row], settings: TokenSettings, tokenizer: Any) -> Tokens:
    """Tokenize the rows in their order, each cut to `max_length` tokens by `kept_tokens`.

    Raises:
        ConfigError: the chat template refuses a row.
    """
    encoder = Encoder(tokenizer)
    template = ChatTemplate(tokenizer, encoder.special, settings.template_name)
    layouts = Layouts(settings.prompt_format, settings.train_on, template)
    ids: list[Int32Array] = []
    trained: list[BoolArray] = []
    truncated = lost = 0
    texts = _TextCount()
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        if settings.tokenize == "apart":
            encoded = encode_apart(chunk, settings.prompt_format, tokenizer, layouts.template)
        else:
            encoded = encoder.encode([layouts.lay_out(row) for row in chunk])
        for row in encoded:
            kept = kept_tokens(row.trained, settings.max_length)
            ids.append(np.asarray(row.ids, dtype=np.int32)[kept])
            trained.append(row.trained[kept])
            is_cut = len(kept) < len(row.ids)
            has_lost = is_cut and int(trained[-1].sum()) < int(row.trained.sum())
            truncated, lost = truncated + is_cut, lost + has_lost
            texts.add(_counted_text(row, ids[-1], trained[-1], has_lost, encoder))
    ends = np.cumsum([len(piece) for piece in ids], dtype=np.int64)
    spans = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1) if ids else np.zeros((0, 2))
    return Tokens(
        ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        trained=np.concatenate(trained) if ids else np.zeros(0, np.bool_),
        spans=spans.astype(np.int64),
        truncated=truncated,
        lost=lost,
        text_bytes=texts.bytes,
        text_hash=texts.hash(),
        date=layouts.date,
    )


class _TextCount:
    """Bytes and hash of the text that counts, row by row."""

    def __init__(self) -> None:
        self.bytes = 0
        self._rows: list[bytes] = []

    def add(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self.bytes += len(content)
        self._rows.append(hashlib.sha256(content).digest())

    def hash(self) -> str:
        """Of all texts, in whatever order they came."""
        return hashlib.sha256(b"".join(sorted(self._rows))).hexdigest()


def _counted_text(
    row: Encoded, ids: Int32Array, trained: BoolArray, has_lost: bool, encoder: Encoder
) -> str:
    """A row's text that counts, after it was cut."""
    if row.text is None or has_lost:
        return encoder.decoded(ids[trained].tolist())
    return row.text


def kept_tokens(trained: BoolArray, max_length: int) -> Int64Array:
    """Numbers of the tokens that a row keeps, at most `max_length`.

    The row loses its end, eos included; where that would leave it less than a quarter of
    `max_length` of tokens that count, it loses its beginning instead, except for its first token
    (bos), and as little of it as gives that quarter.

    Args:
        trained: [tokens], which of them count.
        max_length: the most tokens to keep.
    """
    size = len(trained)
    if size <= max_length:
        return np.arange(size)
    wanted = min(int(trained.sum()), max_length // MIN_TRAINED_SHARE)
    before = np.concatenate([[0], np.cumsum(trained)])
    # For each possible end: what counts among the tokens before it that fit beside the first.
    ends = np.arange(max_length, size + 1)
    counts = before[ends] - before[ends - max_length + 1] + bool(trained[0])
    enough = counts >= wanted
    end = int(ends[int(np.argmax(enough if enough.any() else counts))])
    return np.concatenate([[0], np.arange(end - max_length + 1, end)])
