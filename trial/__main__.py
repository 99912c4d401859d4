"""`python -m trial PATH`: train one trial by hand, without Ray and without Optuna.

PATH is a trial folder, or a configuration file in our keys or in those of the seed repository
(`trial.seed_config`).

Exit codes: 0 complete, 1 failed, 2 the folder or its configuration is wrong, 130 interrupted (the
same command resumes).
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import TextIO

from trial import single_run, trust
from trial.config import earlier
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig, validate
from trial.devices.environment import set_environment
from trial.distributed import rank_env
from trial.distributed.rank_group import PeerLost, folder_of_rank
from trial.distributed.spawn import end_with_parent, spawn
from trial.optional_output import OptionalOutput, optional_output
from trial.preflight.checks import preflight, rank_problems
from trial.store.cache_dir import set_cache_folders
from trial.store.control import NullControl, StopReason, stop_signals
from trial.store.disk_full import DiskFullError
from trial.store.folders import TrialFolder
from trial.store.log_capture import capture
from trial.store.records import Evaluation, Result

COMPLETE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


class Terminal(NullControl):
    """Prints evaluations; the first Ctrl-C asks for a checkpoint, the second stops at once."""

    def __init__(self) -> None:
        self.out: TextIO | OptionalOutput = sys.stdout
        self.interrupted = self.announced = False
        self.max_steps = 0

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        """Print the number of steps and the device."""
        self.max_steps = max_steps
        self.print(f"{folder.path}: {max_steps} steps on {device}")

    def alive(self, folder: TrialFolder) -> None:
        """Nothing: the printed evaluations show that the trial is alive."""

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        """Print a line with the eval loss and the estimated time left."""
        done = f"step {evaluation.step:>6} of {self.max_steps}"
        left = (self.max_steps - evaluation.step) * evaluation.train_seconds
        time_left = f"  {left / evaluation.step:.0f} s of training left" if evaluation.step else ""
        self.print(f"{done}  eval_loss {evaluation.eval_loss:.6f}{time_left}")

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        """`interrupt` after the first Ctrl-C."""
        if not self.interrupted:
            return None
        if not self.announced:
            self.announced = True
            self.print("stopping at a checkpoint; Ctrl-C once more stops at once")
        return "interrupt"

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT, SIGTERM or SIGHUP. Prints nothing: it may have interrupted a print."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def print(self, text: str) -> None:
        """Print a line to the terminal, whatever captures standard output."""
        print(text, file=self.out, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train; returns the exit code."""
    with optional_output():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    given = _parser().parse_args(arguments)
    end_with_parent()
    set_cache_folders()
    try:
        folder = folder_of_rank(_folder(given))
        config = _check(folder, given.world_size)
        if not _is_trusted(given):
            trust.refuse_code(folder.path, trust.code_of_training(folder, config))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG
    set_environment(config, folder.path)
    if (result := folder.read_result()) is not None:
        # Neither torch nor other ranks are needed to report a result.
        _report(Terminal(), folder, result)
        code = _exit_code(result)
    elif given.world_size > 1 and "RANK" not in os.environ:
        more = ["--verbose"] * given.verbose + [trust.FLAG] * _is_trusted(given)
        command = [sys.executable, "-m", "trial", str(folder.path), *more]
        code = spawn(command, given.world_size)
    else:
        code = _train(folder, config, given.verbose)
    if given.merge and code == COMPLETE and not rank_env.rank():
        return _merge(folder, trusted=_is_trusted(given))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trial", description="Train one trial.")
    add = parser.add_argument
    add("path", type=Path, help="a folder with config.json, or a configuration file")
    add("--verbose", action="store_true", help="show the libraries' output too")
    size = rank_env.world_size()
    add("--world-size", "--world_size", type=int, default=size, metavar="N", help="start N ranks")
    add("--use-deepspeed", "--use_deepspeed", action="store_true", help="refuse to do without")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of a file")
    add("--run-dir", type=Path, help="the run's folder, for a configuration file")
    add("--merge", action="store_true", help="write the merged model to merged/ when complete")
    add(trust.FLAG, action="store_true", help=trust.HELP)
    return parser


def _folder(given: argparse.Namespace) -> TrialFolder:
    """The folder PATH, or the folder of the run of the configuration file PATH."""
    if not given.path.is_file():
        if given.set or given.run_dir:
            raise ValueError("--set and --run-dir are for a configuration file")
        return TrialFolder(given.path)
    if "RANK" in os.environ:
        raise ValueError(f"{given.path}: a file starts its ranks itself, with --world-size N")
    found = single_run.read(
        given.path,
        given.set,
        run_dir=given.run_dir,
        deepspeed=given.use_deepspeed,
        world_size=given.world_size,
    )
    return single_run.open_folder(found, given.world_size)


def _is_trusted(given: argparse.Namespace) -> bool:
    """Whether code may run: the flag says so, or a file of the user's own, named here."""
    return bool(given.trust_remote_code or given.path.is_file())


def _merge(folder: TrialFolder, *, trusted: bool) -> int:
    """Write the merged model in another process: this one still holds the training's memory."""
    target = folder.path / "merged"
    if not target.exists():
        command = [sys.executable, "-m", "trial.export", str(folder.path), str(target), "--merge"]
        command += [trust.FLAG] * trusted
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
            return FAILED
    print(f"merged model: {target}")
    return COMPLETE


def _check(folder: TrialFolder, size: int) -> TrialConfig:
    """The folder's configuration, checked before torch is loaded.

    Raises:
        ValueError: it is missing, or cannot be trained here (`ConfigError`).
    """
    if size < 1 or size != rank_env.world_size() > 1:
        raise ValueError(f"--world-size: must be at least 1, and not beside RANK, got {size}")
    if not folder.config.is_file():
        raise ValueError(f"{folder.path}: no config.json here")
    try:
        content = json.loads(earlier.stored_config(folder.config.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{folder.config}: not JSON: {error}") from error
    config, problems = validate(content)
    if config is not None:
        problems = [*preflight(config), *rank_problems(config, size)]
    if config is None or problems:
        where = str(folder.config)
        raise ConfigError(Problem(p.key, p.expected, p.got, p.near, where) for p in problems)
    return config


def _train(folder: TrialFolder, config: TrialConfig, verbose: bool) -> int:
    terminal = Terminal()
    for name in stop_signals():
        signal.signal(name, terminal.on_signal)
    try:
        with capture(folder, echo=verbose) as stream:
            terminal.out = OptionalOutput(stream, "standard output")
            from trial.train import train

            result = train(folder, None if rank_env.rank() else terminal, config=config)
            if not rank_env.rank():
                _report(terminal, folder, result)
    except KeyboardInterrupt:
        return INTERRUPTED
    except DiskFullError as error:
        print(error, file=sys.stderr)
        return FAILED
    except PeerLost as error:
        print(f"left off without a result: {error}; the same command goes on", file=sys.stderr)
        return FAILED
    return _exit_code(result)


def _exit_code(result: Result | None) -> int:
    if result is None:
        return INTERRUPTED
    return FAILED if result.state == "failed" else COMPLETE


def _report(terminal: Terminal, folder: TrialFolder, result: Result | None) -> None:
    if result is None:
        terminal.print(f"interrupted; goes on with: python -m trial {folder.path}")
    elif result.cause is not None:
        terminal.print(f"failed ({result.cause.kind}): {result.cause.message}; see {folder.log}")
    else:
        seconds = result.seconds.total
        terminal.print(f"{result.state}: eval_loss {result.eval_loss} in {seconds:.1f} s")


if __name__ == "__main__":
    # Garbage collection of torch's modules would only delay the end of the process.
    atexit.register(gc.freeze)
    sys.exit(main())
