"""Keeps the special tokens of a template apart from the same characters in a row's own text.

`</s>` in an answer is text; `</s>` that a chat template writes ends a turn. Before a row is laid
out, each special token's name in its texts is replaced by a stand-in of private-use characters, of
the same length, so that positions in the text stay what they are.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

FIRST_STAND_IN = 0x100000
"""First code point of Unicode's last private-use plane, which no text exchanged has a use for."""
_FILLER = "\U0010fff0"

logger = logging.getLogger(__name__)


class SpecialTokens:
    """The special tokens of a tokenizer, and texts in which their names are only text."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids = _special_ids(tokenizer)
        names = sorted(self.ids, key=lambda name: -len(name))
        self._stand_ins = {
            name: chr(FIRST_STAND_IN + number) + _FILLER * (len(name) - 1)
            for number, name in enumerate(names)
        }
        self._names = {stand_in: name for name, stand_in in self._stand_ins.items()}
        self.pattern = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        """Matches the name of a special token."""
        self._stand_in = re.compile(
            "|".join(map(re.escape, sorted(self._names, key=lambda name: -len(name)))) or r"(?!)"
        )

    def protect(self, text: str) -> str:
        """A row's own text with stand-ins for the names of special tokens."""
        return self.pattern.sub(lambda found: self._stand_ins[found[0]], text)

    def restore(self, text: str) -> str:
        """The text without stand-ins."""
        return self._stand_in.sub(lambda found: self._names[found[0]], text)

    def remove(self, text: str) -> str:
        """The text without the special tokens that a template wrote."""
        return self.pattern.sub("", text)

    def holds_stand_in(self, text: str) -> bool:
        """Whether a row's own text names special tokens."""
        return not text.isascii() and self._stand_in.search(text) is not None

    def swapped(self, text: str) -> str:
        """Stand-ins and names exchanged, for a tokenizer that `renamed` has made."""
        both = {**self._stand_ins, **self._names}
        pattern = re.compile(f"{self.pattern.pattern}|{self._stand_in.pattern}")
        return pattern.sub(lambda found: both[found[0]], text)

    def renamed(self, backend: Tokenizer) -> Tokenizer | None:
        """A copy of a fast tokenizer whose special tokens are called by their stand-ins.

        It takes their names for text, and what it does otherwise is the same: prefix spaces,
        merges, positions. None where the copy has other ids.
        """
        content = json.loads(backend.to_str())
        content["truncation"] = content["padding"] = None
        for token in content["added_tokens"]:
            token["content"] = self._stand_ins.get(token["content"], token["content"])
        _rename_in_model(content["model"], self._stand_ins)
        try:
            copy = Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises `Exception` itself
            logger.debug("special tokens cannot be renamed: %s", error)
            return None
        is_same = all(copy.token_to_id(self._stand_ins[n]) == i for n, i in self.ids.items())
        return copy if is_same else None


def _special_ids(tokenizer: Any) -> dict[str, int]:
    """Id of every special token by its name."""
    names = {str(token) for token in tokenizer.all_special_tokens}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): i for i, token in added.items() if token.special or str(token) in names}
    for name in names - set(found):
        found[name] = tokenizer.convert_tokens_to_ids(name)
    return {name: int(i) for name, i in found.items() if name and i is not None}


def _rename_in_model(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename entries of the vocabulary, and drop the merges that would make them of text."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]


def _makes(merge: str | list[str], names: Mapping[str, str]) -> bool:
    """Whether a merge of two pieces takes or gives one of the names."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names
