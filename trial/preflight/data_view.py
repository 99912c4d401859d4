"""What becomes of a trial's data, and one row as it is trained: counted and shown before training.

    echo '[{"model": {}, "data": {"path": "rows.jsonl"}, "row": 0}]' \
        | python -m trial.preflight.data_view

Reads a list of requests from standard input and writes a list of views, as JSON. Tokenizing loads
torch, so a process that must not (the driver) starts this one; importing the module loads none.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig, ModelConfig
from trial.preflight.model_checks import MODEL_KEY, TOKENIZER_KEY, find_model
from trial.store.records import DataSummary, Record

if TYPE_CHECKING:
    from trial.data.tokens import Tokens

UNUSED = ("datasets", "scipy", "sklearn")
"""Packages that transformers imports, where installed, for classes that no tokenizer uses."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for part of a character."""


class ViewRequest(Record):
    """One data configuration, with the model whose tokenizer it meets."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    row: int | None = None
    """Number of the training row to show, from 0 in the order of the split; null for none."""


class RowView(Record):
    """One training row as it is trained."""

    number: int
    tokens: int
    counted: int
    """Tokens that count in the loss."""
    pieces: tuple[tuple[str, bool], ...]
    """The decoded text in stretches, and whether each counts; special tokens included."""


class DataView(Record):
    """What became of the data of one request."""

    summary: DataSummary | None = None
    """None where the data were refused. Without a tokenizer it has no tokens and no hash."""
    row: RowView | None = None
    absent: str = ""
    """Name of a hub model that is not on this machine; empty if the data were tokenized."""
    problems: tuple[dict[str, str], ...] = ()
    """Why a trial would refuse the data: fields of `Problem`."""
    error: str = Field(default="")
    """Any other failure, in words."""

    def refusals(self) -> list[Problem]:
        """The problems, as a `ConfigError` holds them."""
        return [Problem(**problem) for problem in self.problems]


def view(request: ViewRequest) -> DataView:
    """Read, split and tokenize the data as a trial does; what is refused is in the answer."""
    try:
        return _view(request)
    except ConfigError as error:
        return DataView(problems=tuple(asdict(problem) for problem in error.problems))
    except Exception as error:  # Of a tokenizer, anything may come.
        return DataView(error=f"{type(error).__name__}: {error}")


def _view(request: ViewRequest) -> DataView:
    model = request.model
    folder, problems = find_model(model.name_or_path, model.revision, MODEL_KEY, ask=False)
    tokenizer_folder = folder
    if (name := model.tokenizer_name_or_path) is not None:
        tokenizer_folder, more = find_model(name, model.revision, TOKENIZER_KEY, ask=False)
        problems += more
    if problems:
        raise ConfigError(problems)
    if folder is None or tokenizer_folder is None:
        from trial.data.split import read_split, summary_of_rows

        absent = model.name_or_path if folder is None else str(name)
        rows = summary_of_rows(request.data, read_split(request.data))
        return DataView(summary=rows, absent=absent)
    from trial.devices.compat import skip_optional_imports

    skip_optional_imports(UNUSED)
    from trial.data.prepare import prepare
    from trial.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    prepared = prepare(request.data, tokenizer, model_family=folder.settings()["model_type"])
    row = None
    if request.row is not None:
        row = row_view(prepared.train.tokens, request.row, tokenizer)
    return DataView(summary=prepared.summary, row=row)


def row_view(tokens: Tokens, number: int, tokenizer: Any) -> RowView:
    """A row's text, in stretches of tokens that count and tokens that do not.

    Raises:
        ConfigError: there is no row of that number.
    """
    rows = len(tokens.spans)
    if not 0 <= number < rows:
        raise ConfigError([Problem("--row", f"0 to {rows - 1}", str(number))])
    start, end = (int(edge) for edge in tokens.spans[number])
    ids, trained = tokens.ids[start:end].tolist(), tokens.trained[start:end].tolist()
    changes = [at for at in range(1, len(ids)) if trained[at] != trained[at - 1]]
    edges = [0, *changes, len(ids)]
    ends = _text_ends(ids, edges, tokenizer)
    text = _decode(ids, tokenizer)
    pieces = tuple(
        (text[first:last], bool(trained[at]))
        for at, (first, last) in zip(edges, pairwise(ends), strict=False)
    )
    return RowView(number=number, tokens=len(ids), counted=sum(trained), pieces=pieces)


def _text_ends(ids: Sequence[int], edges: Sequence[int], tokenizer: Any) -> list[int]:
    """The place in the decoded row at which each edge between tokens lies.

    A stretch decoded by itself would lose the space that its first token begins with. A character
    whose bytes lie on both sides of an edge belongs to what follows it.
    """
    text = _decode(ids, tokenizer)
    places = [0]
    for edge in edges[1:-1]:
        before = _decode(ids[:edge], tokenizer).rstrip(_BROKEN)
        same = next(
            (n for n, (a, b) in enumerate(zip(before, text, strict=False)) if a != b),
            min(len(before), len(text)),
        )
        places.append(max(places[-1], same))
    return [*places, len(text)]


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def main() -> int:
    """Answer the requests of standard input; nothing else is written to standard output."""
    requests = [ViewRequest.model_validate(request) for request in json.load(sys.stdin)]
    with contextlib.redirect_stdout(sys.stderr):
        views = [view(request).model_dump(mode="json") for request in requests]
    json.dump(views, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
