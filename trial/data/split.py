"""Splits rows into training, eval and forget set, by content and seed, alike on every machine.

The eval set depends on the rows, `eval_fraction`, `split_seed` and `max_eval_samples` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trial.config.sections import DataConfig
from trial.data.examples import Row, Rows, read_forget, read_rows
from trial.data.readers import refuse
from trial.data.refusals import read_alternatives


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
        alternatives=() if config.alternative_column else read_alternatives(config.alternatives),
    )


def _read_retained(config: DataConfig, forget_prompts: frozenset[str]) -> Split:
    """Training and eval set without the rows whose prompt is to be forgotten."""
    rows = _without(read_rows(config), forget_prompts)
    if config.eval_path is None and config.eval_split is None:
        train, held_out = hold_out(rows.rows, config.eval_fraction, config.split_seed)
        if not train or not held_out:
            rule = f"{rows.source}: at least two different prompts, one of them to hold out"
            raise refuse("data.path", rule, f"{len(rows.rows)} rows of one prompt")
        return _limited(train, held_out, rows.skipped, 0, config)
    eval_rows = _without(read_rows(config, "eval"), forget_prompts)
    return _separate_eval(rows, eval_rows, config)


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


def _ordered(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows by the seeded hash of their prompt, then by their content."""

    def sort_key(row: Row) -> tuple[str, str]:
        key = f"{seed}\0{row.prompt_key}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(key).hexdigest(), row.digest()

    return sorted(rows, key=sort_key)
