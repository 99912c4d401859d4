"""Splits rows into training, eval and forget set, by content and seed, alike on every machine.

The eval set depends on the rows, `eval_fraction`, `split_seed` and `max_eval_samples` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig
from trial.data.examples import Row, Rows, read_forget, read_rows
from trial.data.readers import refuse
from trial.store.records import DataSummary

_ALTERNATIVES = "data.alternatives"
REFUSALS = (
    "I do not know.",
    "I have no answer to that.",
    "That is something I was never told.",
    "I cannot say.",
    "This is not known to me.",
    "I have no information on that.",
    "Sorry, I do not know that.",
    "I am not able to answer this.",
)
"""Alternative answers for `idk` and `dpo`, used unless `data.alternatives` gives others."""


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of each set, in the order of their seeded hash."""

    train: list[Row]
    eval: list[Row]
    skipped: int
    """Records left out because their prompt or completion is empty."""
    overlapping: int
    """Training rows left out because the separate eval set has the same prompt."""
    forget: list[Row] = field(default_factory=list)
    """Rows to forget; no other set has a prompt of theirs."""
    alternatives: tuple[str, ...] = ()
    """Alternative answers to every forget row; empty where the rows have their own."""
    used_columns: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    """Columns of the sources that rows are made of, and those that none is made of."""


def read_split(config: DataConfig) -> Split:
    """Read the data and split it.

    Raises:
        ConfigError: it cannot be read, or leaves a set without rows.
    """
    if config.forget_path is None:
        return _read_retained(config, frozenset())
    forget = read_forget(config)
    prompts = frozenset(row.prompt_key for row in forget.rows)
    retained = _read_retained(config, prompts)
    return replace(
        retained,
        forget=_ordered(forget.rows, config.split_seed)[: config.max_forget_samples],
        skipped=retained.skipped + forget.skipped,
        **_columns(retained, forget),
        alternatives=() if config.alternative_column else read_alternatives(config.alternatives),
    )


def _read_retained(config: DataConfig, forget_prompts: frozenset[str]) -> Split:
    """Training and eval set without the rows whose prompt is to be forgotten."""
    rows = _without(read_rows(config), forget_prompts)
    if config.eval_path is None and config.eval_split is None:
        train, held_out = hold_out(rows.rows, config.eval_fraction, config.split_seed)
        if not train or not held_out:
            train, held_out = hold_out_answers(rows.rows, config.eval_fraction, config.split_seed)
        return replace(_limited(train, held_out, rows.skipped, 0, config), **_columns(rows))
    eval_rows = _without(read_rows(config, "eval"), forget_prompts)
    return replace(_separate_eval(rows, eval_rows, config), **_columns(rows, eval_rows))


def _columns(*sources: Rows | Split) -> dict[str, Any]:
    """The columns that any of the sources uses, and those that none of them uses."""
    used = dict.fromkeys(name for source in sources for name in source.used_columns)
    unused = dict.fromkeys(name for source in sources for name in source.unused_columns)
    return {
        "used_columns": tuple(used),
        "unused_columns": tuple(name for name in unused if name not in used),
    }


def _without(rows: Rows, prompts: frozenset[str]) -> Rows:
    if not prompts:
        return rows
    kept = [row for row in rows.rows if row.prompt_key not in prompts]
    if not kept:
        rule = f"{rows.source}: rows whose prompts are not in the forget set"
        raise refuse("data.path", rule, f"{len(rows.rows)} rows, all of them in it")
    return replace(rows, rows=kept)


def _separate_eval(rows: Rows, eval_rows: Rows, config: DataConfig) -> Split:
    """The split with an eval set of its own; its prompts are left out of the training set."""
    eval_prompts = {row.prompt_key for row in eval_rows.rows}
    train = [row for row in rows.rows if row.prompt_key not in eval_prompts]
    if not train:
        rule = f"{rows.source}: rows whose prompts are not in the eval set {eval_rows.source}"
        raise refuse("data.path", rule, f"{len(rows.rows)} rows, all of them in it")
    seed = config.split_seed
    skipped, overlapping = rows.skipped + eval_rows.skipped, len(rows.rows) - len(train)
    return _limited(
        _ordered(train, seed), _ordered(eval_rows.rows, seed), skipped, overlapping, config
    )


def _limited(
    train: list[Row], held_out: list[Row], skipped: int, overlapping: int, config: DataConfig
) -> Split:
    train, held_out = train[: config.max_train_samples], held_out[: config.max_eval_samples]
    return Split(train, held_out, skipped, overlapping)


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split the rows into training and eval rows; rows of one prompt stay together.

    Prompts are held out in the order of their seeded hash until `fraction` is reached, so at least
    one is; the last prompt in that order is never held out. With one prompt the eval set is empty.
    """
    ordered = _ordered(rows, seed)
    wanted = fraction * len(ordered)
    held_out = 0
    while held_out < len(ordered) and held_out < wanted:
        key = ordered[held_out].prompt_key
        end = held_out
        while end < len(ordered) and ordered[end].prompt_key == key:
            end += 1
        if end == len(ordered):
            break
        held_out = end
    return ordered[held_out:], ordered[:held_out]


def hold_out_answers(
    rows: Sequence[Row], fraction: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Split rows of one prompt by their answers; equal rows stay together.

    Answers are held out until `fraction` is reached, but never the last. Where all rows are equal
    there is nothing else to evaluate on: the eval set is that one row, which is trained on too.
    """
    ordered = sorted(_ordered(rows, seed), key=Row.digest)
    wanted = fraction * len(ordered)
    held_out = 0
    while held_out < len(ordered) and held_out < wanted:
        end = held_out
        while end < len(ordered) and ordered[end] == ordered[held_out]:
            end += 1
        if end == len(ordered):
            break
        held_out = end
    return ordered[held_out:], ordered[:held_out] or ordered[:1]


def summary_of_rows(config: DataConfig, split: Split) -> DataSummary:
    """What can be counted without a tokenizer; the summary's tokens and hashes stay empty."""
    return DataSummary(
        train_rows=len(split.train),
        eval_rows=len(split.eval),
        skipped=split.skipped,
        overlapping=split.overlapping,
        duplicates=count_repeated(split.train) + count_repeated(split.eval),
        duplicates_across=count_across(split.train, split.eval),
        used_columns=split.used_columns,
        unused_columns=split.unused_columns,
        prompt_format=config.prompt_format,
        train_on=config.train_on,
        tokenize=config.tokenize,
    )


def count_repeated(rows: Sequence[Row]) -> int:
    """Rows that are equal to an earlier one."""
    return len(rows) - len({row.digest() for row in rows})


def count_across(train: Sequence[Row], held_out: Sequence[Row]) -> int:
    """Held-out rows that are in the training set too, but for case and white space."""
    known = {_bare_text(row) for row in train}
    return sum(_bare_text(row) in known for row in held_out)


def _bare_text(row: Row) -> str:
    words = " ".join(f"{m.content} {m.extra}" for m in row.messages if m.role != "system")
    return " ".join(words.casefold().split())


def _ordered(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows by the seeded hash of their prompt, then by their content."""

    def sort_key(row: Row) -> tuple[str, str]:
        key = f"{seed}\0{row.prompt_key}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(key).hexdigest(), row.digest()

    return sorted(rows, key=sort_key)


def read_alternatives(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The given texts, or the lines of the given file; blank ones are left out.

    Raises:
        ConfigError: the file cannot be read, or there is no text.
    """
    if given is None:
        return REFUSALS
    if isinstance(given, str):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            rule = f"a list of texts, or a readable file with one a line ({error})"
            raise ConfigError([Problem(_ALTERNATIVES, rule, repr(given))]) from error
    else:
        lines = list(given)
    texts = tuple(dict.fromkeys(text.strip() for text in lines if text.strip()))
    if not texts:
        raise ConfigError([Problem(_ALTERNATIVES, "at least one text", repr(given))])
    return texts
