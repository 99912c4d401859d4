"""The files of a study and of a trial, and the records in them. Readers never see half a file.

    runs/<study>/study.json            what the study is (version, sweep file, resolved spec)
                 sweep.yaml            the sweep file as it was given
                 journal.log           Optuna's storage (written by the driver only)
                 trials/00007/         one TrialFolder

A trial folder is the authority on what happened in the trial; the journal can be rebuilt from it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from trial.config import earlier
from trial.config.trial_config import TrialConfig
from trial.store import manifest
from trial.store.files import DamagedFileError, append_line, read_lines, write_atomically
from trial.store.records import Attempt, Evaluation, Record, Result, StudyRecord, TrainLog

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=Record)


class TrialFolder:
    """The files of one trial."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.attempts = self.path / "attempts.jsonl"
        self.result = self.path / "result.json"
        self.failures = self.path / "failures.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.truth_ratios = self.path / "truth_ratios.json"
        self.log = self.path / "train.log"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"

    @classmethod
    def create(cls, path: Path | str, config: TrialConfig) -> TrialFolder:
        """Make the folder and write its configuration."""
        folder = cls(path)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(folder.config, config.model_dump_json(indent=2) + "\n")
        return folder

    def read_config(self) -> TrialConfig:
        """The trial's configuration.

        Raises:
            FileNotFoundError: there is none.
            ValueError: this version cannot read it; the message says where and why.
        """
        return _read(self.config, TrialConfig, earlier.stored_config)

    def read_result(self) -> Result | None:
        """The result, or None while the trial has not ended."""
        return _read(self.result, Result) if self.result.exists() else None

    def write_result(self, result: Result) -> None:
        """Write the result: after this the trial is never trained again.

        The file names size and hash of the trial's other files, and has a hash of itself.
        """
        content = json.loads(result.model_dump_json())
        stamps = manifest.stamp_all(self.path, self._final_files())
        files = {name: stamp.model_dump() for name, stamp in stamps.items()}
        sealed = manifest.seal({**content, "files": files})
        write_atomically(self.result, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")

    def _final_files(self) -> tuple[Path, ...]:
        """Files and folders that do not change any more once there is a result."""
        records = (self.metrics, self.attempts, self.failures, self.truth_ratios)
        return (*records, self.adapter, self.model)

    def damage(self, *, deep: bool) -> list[str]:
        """What is not as it was when the result was written; empty without a result.

        A result of an earlier version names no files: then nothing is known.

        Args:
            deep: Whether to compare hashes; else only sizes are compared, and the result's own
                hash.

        Raises:
            OSError: the result cannot be read.
            ValueError: the result is no JSON object.
        """
        if not self.result.exists():
            return []
        stamps = _read(self.result, manifest.Manifest).files
        content = json.loads(self.result.read_text(encoding="utf-8"))
        edited = [] if manifest.is_sealed(content) else [f"{self.result.name} has been changed"]
        return edited + manifest.damage(self.path, stamps, deep=deep)

    def refuse_damaged_weights(self) -> None:
        """Check the trained weights against the result.

        Raises:
            ValueError: a file of them is not as the trial wrote it.
        """
        stamps = _read(self.result, manifest.Manifest).files if self.result.exists() else {}
        folders = (f"{self.adapter.name}/", f"{self.model.name}/")
        weights = {name: stamp for name, stamp in stamps.items() if name.startswith(folders)}
        if wrong := manifest.damage(self.path, weights, deep=True):
            raise ValueError(f"{self.path}: {wrong[0]}: train the trial again")

    def move_result_to_failures(self) -> None:
        """Move a failed result to `failures.jsonl`, so that the trial can be tried again."""
        result = self.read_result()
        if result is not None:
            # It is there already when the process was killed between the two writes.
            if result not in self.read_failures()[-1:]:
                self.append_failure(result)
            self.result.unlink()

    def append_failure(self, result: Result) -> None:
        """Record a failure after which the trial is tried again."""
        append_line(self.failures, result.model_dump_json())

    def read_failures(self) -> list[Result]:
        """Failures after which the trial was tried again, oldest first."""
        return list(_parse_all(read_lines(self.failures), Result))

    def append(self, line: Evaluation | TrainLog) -> None:
        """Append a line to `metrics.jsonl`; it is on disk when this returns."""
        append_line(self.metrics, line.model_dump_json())

    def write_log(self, text: str) -> None:
        """Append a line with the time to the trial's log."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{stamp} {text}\n")

    def append_attempt(self, attempt: Attempt) -> None:
        """Append a start of the trial to `attempts.jsonl`."""
        append_line(self.attempts, attempt.model_dump_json())

    def read_evaluations(self) -> list[Evaluation]:
        """Evaluations in step order; a step evaluated again after a resume counts once."""
        by_step = {row.step: row for row in self.read_all_evaluations()}
        return [by_step[step] for step in sorted(by_step)]

    def read_all_evaluations(self) -> list[Evaluation]:
        """Evaluations as they were written: a step evaluated again occurs again."""
        rows = (row for row in read_lines(self.metrics) if row.get("kind") == "eval")
        return list(_parse_all(rows, Evaluation))

    def read_train_logs(self) -> list[TrainLog]:
        """Training log entries in step order, each step once."""
        rows = (row for row in read_lines(self.metrics) if row.get("kind") == "train")
        by_step = {row.step: row for row in _parse_all(rows, TrainLog)}
        return [by_step[step] for step in sorted(by_step)]

    def read_attempts(self) -> list[Attempt]:
        """Every start of the trial, oldest first."""
        return list(_parse_all(read_lines(self.attempts), Attempt))


class StudyFolder:
    """The files of one study."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.record = self.path / "study.json"
        self.sweep_file = self.path / "sweep.yaml"
        self.journal = self.path / "journal.log"
        self.earlier = self.path / "earlier.jsonl"
        self.trials = self.path / "trials"
        self.report = self.path / "report"
        self.log = self.path / "driver.log"

    @property
    def name(self) -> str:
        """The study's name: its folder's."""
        return self.path.name

    @property
    def repair_hint(self) -> str:
        """The command that makes the study's own files anew, from its trial folders."""
        return f"repair it with: gaudi-sweep verify {shlex.quote(str(self.path))} --repair"

    def refuse_lost_record(self) -> None:
        """Check that a folder without a record is no study that has lost it.

        Raises:
            DamagedFileError: there are trials or a journal, and no record.
        """
        if self.exists():
            return
        trials = len(self.all_trials())
        if trials or (self.journal.exists() and self.journal.stat().st_size):
            what = f"is missing, and the folder holds a study of {trials} trials"
            raise DamagedFileError(self.record, f"{what}; {self.repair_hint}")

    def exists(self) -> bool:
        """Whether a study has been started here."""
        return self.record.exists()

    def read_record(self) -> StudyRecord:
        """The study's record.

        Raises:
            FileNotFoundError: there is no study here.
            ValueError: this version cannot read it.
        """
        try:
            return _read(self.record, StudyRecord, earlier.stored_record)
        except DamagedFileError as error:
            error.args = (f"{error}; {self.repair_hint}",)
            raise

    def refuse_other_version(self) -> None:
        """Check the format version of the study's record alone.

        Raises:
            ValueError: this version of gaudi-sweep cannot read it.
        """
        text = self.record.read_text(encoding="utf-8", errors="replace")
        _refuse_version(self.record, text, StudyRecord)

    def write_record(self, record: StudyRecord) -> None:
        """Write the study's record; makes the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.record, record.model_dump_json(indent=2) + "\n")

    def trial(self, number: int) -> TrialFolder:
        """The folder of one trial, whether it exists or not."""
        return TrialFolder(self.trials / f"{number:05d}")

    def all_trials(self) -> list[tuple[int, TrialFolder]]:
        """Existing trial folders by number."""
        numbers = sorted(int(p.name) for p in self.trials.glob("*") if p.name.isdecimal())
        # A copy under another spelling ("7" beside "00007") is not the trial.
        folders = ((number, self.trial(number)) for number in dict.fromkeys(numbers))
        return [(number, folder) for number, folder in folders if folder.path.is_dir()]


def _parse_all(rows: Iterator[dict[str, Any]], record: type[R]) -> Iterator[R]:
    for row in rows:
        try:
            yield record.model_validate(row)
        except ValidationError:
            continue


def _read(path: Path, record: type[M], complete: Callable[[str], str] = str) -> M:
    """Read a record; `complete` adds to the text what later versions need."""
    try:
        text = complete(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"content: is not UTF-8 text ({error.reason})"
        raise DamagedFileError(path, what, line) from error
    try:
        return record.model_validate_json(text)
    except ValidationError as error:
        _refuse_version(path, text, record)
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DamagedFileError(path, f"{key or 'content'}: {first['msg']}", _line(text)) from error


def _line(text: str) -> int | None:
    """The line at which a text stops being JSON; None if it is JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):
        return 1
    return None


def _refuse_version(path: Path, text: str, record: type[BaseModel]) -> None:
    """Raise a `ValueError` that names the versions when the file has another format version."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return
    ours = record.model_fields["version"].default
    theirs = content.get("version", ours) if isinstance(content, dict) else ours
    if theirs != ours:
        raise ValueError(
            f"{path}: version: was written in version {theirs!r} of its format; "
            f"this gaudi-sweep reads version {ours}"
        )
