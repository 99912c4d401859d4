"""Texts as token ids, with the characters and so the tokens that count in the loss."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from trial.data.text.special_tokens import SpecialTokens

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Spans = tuple[tuple[int, int], ...]
"""Start and end of each stretch of characters."""
Offsets = list[tuple[int, int]]
"""Start and end of each token's characters."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A row as one text, and the characters of it that count."""

    text: str
    """With stand-ins where the row's own text names special tokens (`SpecialTokens`)."""
    trained: Spans
    """Ascending, not overlapping."""
    with_prefix: bool
    """Whether the tokenizer's own first tokens (bos) go before it; a chat template writes them."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids."""

    ids: list[int]
    trained: BoolArray
    """[tokens]; never the first token, which no position predicts."""
    text: str | None = None
    """The text that counts, special tokens left out; None where the first token would count."""


class Encoder:
    """One tokenizer, with the special tokens of templates apart from the rows' own text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = SpecialTokens(tokenizer)
        self.prefix = prefix_ids(tokenizer)
        """What the tokenizer puts before every text."""
        self._is_fast = bool(getattr(tokenizer, "is_fast", False))
        self._renamed: Any = None

    def encode(self, layouts: Sequence[Layout]) -> list[Encoded]:
        """The rows in their order; each ends in one eos."""
        is_mixed = [self.special.holds_stand_in(layout.text) for layout in layouts]
        plain = [layout for layout, mixed in zip(layouts, is_mixed, strict=True) if not mixed]
        encoded = iter(self._plain(plain) if self._is_fast else map(self._slow, plain))
        return [
            self._finish(layout, *(self._mixed(layout) if mixed else next(encoded)))
            for layout, mixed in zip(layouts, is_mixed, strict=True)
        ]

    def _plain(self, layouts: Sequence[Layout]) -> Iterator[tuple[list[int], Offsets]]:
        if not layouts:
            return
        batch = self.tokenizer(
            [layout.text for layout in layouts],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        yield from zip(batch["input_ids"], batch["offset_mapping"], strict=True)

    def _mixed(self, layout: Layout) -> tuple[list[int], Offsets]:
        """Ids and offsets of a text whose own words are also names of special tokens."""
        if self._is_fast and self._renamed is None:
            self._renamed = self.special.renamed(self.tokenizer.backend_tokenizer) or False
        if not self._renamed:
            return self._slow(layout)
        found = self._renamed.encode(self.special.swapped(layout.text), add_special_tokens=False)
        return list(found.ids), list(found.offsets)

    def _slow(self, layout: Layout) -> tuple[list[int], Offsets]:
        """Ids and offsets by a tokenizer written in Python, which knows no offsets.

        The text is divided at special tokens. Within a piece, offsets are right where a stretch
        that counts begins or ends, and coarse elsewhere.
        """
        ids: list[int] = []
        offsets: Offsets = []
        edges = sorted({edge for span in layout.trained for edge in span})
        for start, end, special_id in self._pieces(layout.text):
            if special_id is not None:
                ids.append(special_id)
                offsets.append((start, end))
                continue
            piece = self._piece_ids(layout.text[start:end])
            first, begin = 0, start
            for edge in (edge for edge in edges if start < edge < end):
                before = self._piece_ids(layout.text[start:edge])
                same = _common(before, piece)
                offsets += [(begin, edge)] * (same - first)
                # A token that spans the edge begins before it.
                first, begin = max(first, same), edge if same == len(before) else edge - 1
            offsets += [(begin, end)] * (len(piece) - first)
            ids += piece
        return ids, offsets

    def _pieces(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """Start and end of each special token, with its id, and of the text between them."""
        at = 0
        for found in self.special.pattern.finditer(text):
            if found.start() > at:
                yield at, found.start(), None
            yield found.start(), found.end(), self.special.ids[found[0]]
            at = found.end()
        if at < len(text):
            yield at, len(text), None

    def _piece_ids(self, text: str) -> list[int]:
        text = self.special.restore(text)
        pieces = self.tokenizer.tokenize(text, split_special_tokens=True)
        return list(self.tokenizer.convert_tokens_to_ids(pieces))

    def _finish(self, layout: Layout, ids: Sequence[int], offsets: Offsets) -> Encoded:
        """Mark what counts, and put the first tokens before it and the eos after it."""
        trained = _mark(offsets, layout.trained)
        before = self.prefix if layout.with_prefix else []
        eos = self.tokenizer.eos_token_id
        after = [] if ids and ids[-1] == eos else [eos]
        marks = np.array([*[False] * len(before), *trained, *[True] * len(after)], dtype=np.bool_)
        counts_first = bool(marks[0])
        marks[0] = False
        text = None if counts_first else self._counted_text(layout)
        return Encoded([*before, *ids, *after], marks, text)

    def _counted_text(self, layout: Layout) -> str:
        texts = (layout.text[start:end] for start, end in layout.trained)
        return "".join(self.special.restore(self.special.remove(text)) for text in texts)

    def decoded(self, ids: Sequence[int]) -> str:
        """What the tokens say, special tokens left out."""
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def prefix_ids(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before every text: bos, or none."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    places = range(len(whole) - len(bare) + 1)
    start = next((n for n in places if whole[n : n + len(bare)] == bare), 0)
    return whole[:start]


def _mark(offsets: Offsets, trained: Spans) -> list[bool]:
    """Whether each token has a character that counts.

    A token begins where the one before it ends: some tokenizers leave the space before a word out
    of its offsets, and give none to a token of spaces alone.
    """
    ends = list(accumulate((end for _, end in offsets), max))
    starts = [min(start, end) for (start, _), end in zip(offsets, [0, *ends], strict=False)]
    marks = [False] * len(offsets)
    for start, end in trained:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        marks[first:last] = [True] * (last - first)
    return marks


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(left), len(right)))
