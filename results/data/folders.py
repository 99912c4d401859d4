"""Read a study's folders for a report; a broken file makes one trial unreadable, not the study.

Configurations are read as plain mappings: a report must also explain what an older or newer
version has written, and ten thousand of them must not take minutes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from pydantic_core import from_json

from trial.config import dotted
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Attempt, Result, StudyRecord

State = Literal["complete", "pruned", "failed", "duplicate", "unfinished", "unreadable"]
"""How a trial stands. `unfinished` has no result yet: running or interrupted, the folders alone
cannot say which."""

_COLUMNS = ("step", "eval_loss", "tokens", "train_seconds", "time")


@dataclass(frozen=True, slots=True)
class EvalCurve:
    """A trial's evaluations in step order, one array a column."""

    step: np.ndarray
    eval_loss: np.ndarray
    tokens: np.ndarray
    train_seconds: np.ndarray
    time: np.ndarray
    repeated_seconds: float = field(default=0.0, kw_only=True)
    """Seconds of training that were lost with an attempt and repeated by the next one."""

    def __len__(self) -> int:
        return len(self.step)


NO_CURVE = EvalCurve(np.empty(0), np.empty(0), np.empty(0), np.empty(0), np.empty(0))


@dataclass(frozen=True, slots=True)
class TrialRead:
    """Content of one trial folder."""

    number: int
    folder: TrialFolder
    state: State
    config: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path to value; `origin` left out."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters drawn by the sampler, by dotted path."""
    confirms: int | None = None
    """The trial whose configuration this one repeats with another seed, to confirm it."""
    result: Result | None = None
    curve: EvalCurve = NO_CURVE
    attempts: tuple[Attempt, ...] = ()
    problem: str = ""
    """Why the folder is unreadable."""


@dataclass(frozen=True, slots=True)
class StudyRead:
    """Content of a study's folder."""

    folder: StudyFolder
    record: StudyRecord
    trials: tuple[TrialRead, ...]
    problem: str = ""
    """Why the study's own record is unreadable, when it is."""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.record.name

    @property
    def spec(self) -> Mapping[str, Any]:
        """The resolved sweep file."""
        return self.record.spec


def read_study(folder: StudyFolder, curves: bool = True) -> StudyRead:
    """Read every folder of a study; `curves=False` leaves out the metrics files."""
    record, problem = _record(folder)
    trials = tuple(read_trial(number, trial, curves) for number, trial in folder.all_trials())
    return StudyRead(folder, record, trials, problem)


def read_trial(number: int, folder: TrialFolder, curves: bool = True) -> TrialRead:
    """Read one trial's folder; whatever is wrong with it becomes its `problem`."""
    try:
        config = _mapping(folder.config)
        result = _result(folder)
    except (OSError, ValueError) as error:
        return TrialRead(number, folder, "unreadable", problem=_first_line(error))
    origin = config.pop("origin", None)
    origin = origin if isinstance(origin, dict) else {}
    params, confirms = origin.get("params"), origin.get("confirms")
    return TrialRead(
        number,
        folder,
        result.state if result else "unfinished",
        _comparable(config),
        _plain_names(params) if isinstance(params, dict) else {},
        confirms if isinstance(confirms, int) else None,
        result,
        read_curve(folder.metrics) if curves else NO_CURVE,
        tuple(folder.read_attempts()),
    )


def read_curve(path: Path) -> EvalCurve:
    """Evaluations of a metrics file, the last one of each step; incomplete lines are skipped."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return NO_CURVE
    rows = _evaluations([line for line in lines if b'"eval"' in line])
    by_step = {row[0]: row for row in rows}
    if not by_step:
        return NO_CURVE
    step, loss, tokens, seconds, time = np.array([by_step[step] for step in sorted(by_step)]).T
    return EvalCurve(step, loss, tokens, seconds, time, repeated_seconds=_repeated(rows))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections as dotted paths; lists become text, so that every value can be compared."""
    return {path: _scalar(value) for path, value in dotted.flatten(config).items()}


def _scalar(value: Any) -> Any:
    """A list as JSON text; an empty list or mapping as null."""
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False) if value else None
    return value


def _plain_names(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by path: `lora.lora_alpha[lora.use_rslora=true]` is a branch of one path."""
    return {name.partition("[")[0]: value for name, value in params.items()}


def _record(folder: StudyFolder) -> tuple[StudyRecord, str]:
    try:
        return folder.read_record(), ""
    except (OSError, ValueError) as error:
        return StudyRecord(name=folder.name, created=0.0, spec={}), _first_line(error)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = from_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name}: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: not a configuration: {str(content)[:80]!r}")
    return content


def _result(folder: TrialFolder) -> Result | None:
    try:
        text = folder.result.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Result.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{folder.result.name}: {key or 'content'}: {first['msg']}") from error


def _evaluations(lines: list[bytes]) -> list[tuple[float, ...]]:
    """Evaluations among JSON lines; lines are parsed one by one where parsing all at once fails."""
    try:
        parsed = from_json(b"[" + b",".join(lines) + b"]")
    except ValueError:
        parsed = [row for line in lines if (row := _parsed(line)) is not None]
    return [row for item in parsed if (row := _evaluation(item))]


def _parsed(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def _evaluation(row: Any) -> tuple[float, ...] | None:
    try:
        if row["kind"] != "eval":
            return None
        values = [row.get(name, 0.0) for name in _COLUMNS]
        return None if str in map(type, values) else tuple(map(float, values))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _repeated(rows: list[tuple[float, ...]]) -> float:
    """Seconds between evaluations that were repeated after a resume from an earlier step."""
    lost = 0.0
    for before, after in pairwise(rows):
        step, time = after[0], before[4]
        if step <= before[0]:
            kept = [row[4] for row in rows if row[0] < step and row[4] <= time]
            lost += max(0.0, time - max(kept, default=rows[0][4]))
    return lost


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
