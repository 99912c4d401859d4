"""Which rows are trained on and which are held out: by content and seed, alike on every machine.

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
    """The two sides, in the order of their seeded hash."""

    train: list[Row]
    eval: list[Row]
    skipped: int
    """Records left out because their prompt or completion is empty."""
    overlapping: int
    """Training rows left out because the separate eval set asks the same."""
    forget: list[Row] = field(default_factory=list)
    """Rows to forget; no prompt of theirs is on the other sides."""
    alternatives: tuple[str, ...] = ()
    """What to answer instead, where the rows do not say so themselves."""


def read_split(config: DataConfig) -> Split:
    """Read and divide the data.

    Raises:
        ConfigError: it cannot be read, or leaves one side without rows.
    """
    if config.forget_path is None:
        return _read_retained(config, frozenset())
    forget = read_forget(config)
    asked = frozenset(row.prompt_key for row in forget.rows)
    retained = _read_retained(config, asked)
    return replace(
        retained,
        forget=_ordered(forget.rows, config.split_seed)[: config.max_forget_samples],
        skipped=retained.skipped + forget.skipped,
        alternatives=() if config.alternative_column else read_alternatives(config.alternatives),
    )


def _read_retained(config: DataConfig, forgotten: frozenset[str]) -> Split:
    """The rows of `path` but for those whose prompt is to be forgotten."""
    rows = _without(read_rows(config), forgotten)
    if config.eval_path is None and config.eval_split is None:
        train, held_out = hold_out(rows.rows, config.eval_fraction, config.split_seed)
        if not train or not held_out:
            rule = f"{rows.source}: at least two different prompts, one of them to hold out"
            raise refuse("data.path", rule, f"{len(rows.rows)} rows of one prompt")
        return _limited(train, held_out, rows.skipped, 0, config)
    apart = _without(read_rows(config, "eval"), forgotten)
    return _apart(rows, apart, config)


def _without(rows: Rows, prompts: frozenset[str]) -> Rows:
    if not prompts:
        return rows
    kept = [row for row in rows.rows if row.prompt_key not in prompts]
    if not kept:
        rule = f"{rows.source}: rows whose prompts are not in the forget set"
        raise refuse("data.path", rule, f"{len(rows.rows)} rows, all of them in it")
    return replace(rows, rows=kept)


def _apart(rows: Rows, apart: Rows, config: DataConfig) -> Split:
    asked = {row.prompt_key for row in apart.rows}
    train = [row for row in rows.rows if row.prompt_key not in asked]
    if not train:
        rule = f"{rows.source}: rows whose prompts are not in the eval set {apart.source}"
        raise refuse("data.path", rule, f"{len(rows.rows)} rows, all of them in it")
    seed = config.split_seed
    skipped, overlapping = rows.skipped + apart.skipped, len(rows.rows) - len(train)
    return _limited(_ordered(train, seed), _ordered(apart.rows, seed), skipped, overlapping, config)


def _limited(
    train: list[Row], held_out: list[Row], skipped: int, overlapping: int, config: DataConfig
) -> Split:
    train, held_out = train[: config.max_train_samples], held_out[: config.max_eval_samples]
    return Split(train, held_out, skipped, overlapping)


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide the rows into train and eval; rows of one prompt stay together.

    Prompts are held out in the order of their seeded hash until the share is reached, so at least
    one is; the last prompt in that order is never held out. One prompt leaves eval empty.
    """
    ordered = _ordered(rows, seed)
    wanted = fraction * len(ordered)
    taken = 0
    while taken < len(ordered) and taken < wanted:
        key = ordered[taken].prompt_key
        end = taken
        while end < len(ordered) and ordered[end].prompt_key == key:
            end += 1
        if end == len(ordered):
            break
        taken = end
    return ordered[taken:], ordered[:taken]


def _ordered(rows: Sequence[Row], seed: int) -> list[Row]:
    def order(row: Row) -> tuple[str, str]:
        key = f"{seed}\0{row.prompt_key}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(key).hexdigest(), row.digest()

    return sorted(rows, key=order)
