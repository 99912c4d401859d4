"""`python -m trial DIR`: train one trial by hand, without Ray and without Optuna.

Ends with 0 when the trial is complete, 1 when it failed, 2 when the folder or its configuration is
wrong, 130 when it was interrupted (the same command goes on).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TextIO

from trial.check import preflight
from trial.config import problems_of
from trial.control import StopReason
from trial.folder import Evaluation, Result, TrialFolder
from trial.logs import capture
from trial.problems import ConfigError, Problem

COMPLETE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Terminal:
    """Prints evaluations; the first Ctrl-C asks for a checkpoint, the second stops at once."""

    def __init__(self) -> None:
        self.out: TextIO = sys.stdout
        self.interrupted = self.said = False

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """What is about to happen."""
        self.say(f"{folder.path}: {max_steps} steps on {device}")

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """One line an evaluation."""
        self.say(f"step {evaluation.step:>6}  eval_loss {evaluation.eval_loss:.6f}")

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """`interrupt` after Ctrl-C."""
        if not self.interrupted:
            return None
        if not self.said:
            self.said = True
            self.say("stopping at a checkpoint; Ctrl-C once more stops at once")
        return "interrupt"

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C or a polite kill. Prints nothing: it may have interrupted a print."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def say(self, text: str) -> None:
        """One line to the person."""
        print(text, file=self.out, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Train the folder that is named; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trial", description="Train one trial folder.")
    parser.add_argument("folder", type=Path, help="a folder with config.json")
    parser.add_argument("--verbose", action="store_true", help="show the libraries' output too")
    given = parser.parse_args(arguments)
    folder = TrialFolder(given.folder)
    try:
        _check(folder)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG
    return _train(folder, given.verbose)


def _check(folder: TrialFolder) -> None:
    """Refuse a folder that cannot be trained, before anything is loaded."""
    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no config.json here")
    try:
        content = json.loads(folder.config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder.config}: not JSON: {error}") from error
    problems = problems_of(content) or preflight(folder.read_config())
    if problems:
        where = str(folder.config)
        raise ConfigError(Problem(p.key, p.expected, p.got, p.near, where) for p in problems)


def _train(folder: TrialFolder, verbose: bool) -> int:
    terminal = Terminal()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, terminal.on_signal)
    try:
        with capture(folder, echo=verbose) as terminal.out:
            from trial.train import train

            result = train(folder, terminal)
            _tell(terminal, folder, result)
    except KeyboardInterrupt:
        return INTERRUPTED
    if result is None:
        return INTERRUPTED
    return FAILED if result.state == "failed" else COMPLETE


def _tell(terminal: Terminal, folder: TrialFolder, result: Result | None) -> None:
    if result is None:
        terminal.say(f"interrupted; goes on with: python -m trial {folder.path}")
    elif result.cause is not None:
        terminal.say(f"failed ({result.cause.kind}): {result.cause.message}; see {folder.log}")
    else:
        seconds = result.seconds.total
        terminal.say(f"{result.state}: eval_loss {result.value} in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
