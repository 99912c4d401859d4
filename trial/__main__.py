"""`python -m trial DIR`: train one trial by hand, without Ray and without Optuna.

Ends with 0 when the trial is complete, 1 when it failed, 2 when the folder or its configuration is
wrong, 130 when it was interrupted (the same command goes on).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TextIO

from trial import ranks
from trial.check import preflight, rank_problems
from trial.config import problems_of
from trial.control import Free, StopReason
from trial.disk import DiskFullError
from trial.folder import Evaluation, Result, TrialFolder
from trial.gang import PeerLost, own
from trial.logs import capture
from trial.problems import ConfigError, Problem
from trial.spawn import end_with_parent, spawn

COMPLETE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Terminal(Free):
    """Prints evaluations; the first Ctrl-C asks for a checkpoint, the second stops at once."""

    def __init__(self) -> None:
        self.out: TextIO = sys.stdout
        self.interrupted = self.said = False

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """What is about to happen."""
        self.say(f"{folder.path}: {max_steps} steps on {device}")

    def alive(self, folder: TrialFolder) -> None:
        """The person sees it by the lines."""

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
    parser.add_argument(
        "--world-size", type=int, default=ranks.world_size(), metavar="N", help="start N ranks here"
    )
    given = parser.parse_args(arguments)
    end_with_parent()
    folder = own(TrialFolder(given.folder))
    try:
        _check(folder, given.world_size)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG
    if given.world_size > 1 and "RANK" not in os.environ:
        more = ["--verbose"] if given.verbose else []
        command = [sys.executable, "-m", "trial", str(given.folder), *more]
        return spawn(command, given.world_size)
    return _train(folder, given.verbose)


def _check(folder: TrialFolder, size: int) -> None:
    """Refuse a folder that cannot be trained, before anything is loaded."""
    if size < 1 or size != ranks.world_size() > 1:
        raise ValueError(f"--world-size: must be at least 1, and not beside RANK, got {size}")
    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no config.json here")
    try:
        content = json.loads(folder.config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder.config}: not JSON: {error}") from error
    problems = problems_of(content)
    if not problems:
        config = folder.read_config()
        problems = [*preflight(config), *rank_problems(config, size)]
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

            result = train(folder, None if ranks.rank() else terminal)
            if not ranks.rank():
                _tell(terminal, folder, result)
    except KeyboardInterrupt:
        return INTERRUPTED
    except DiskFullError as error:
        print(error, file=sys.stderr)
        return FAILED
    except PeerLost as error:
        print(f"left off without a result: {error}; the same command goes on", file=sys.stderr)
        return FAILED
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
