"""Rehearses the trials of a sweep in a child process, so that this one stays without torch.

rehearsal = Rehearsal(request_for(spec))
if not rehearsal.known:
    rehearsal.start()
    ...                                # anything else meanwhile
    rehearsal.refuse()                 # waits; raises what keeps a worker from training
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import trial.rehearsal
from sweep.ray_backend.fork_client import request_worker
from sweep.spec.grid import variants
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig
from trial.devices.detect import detected_device, has_cuda_device
from trial.devices.environment import process_environment
from trial.preflight.model_checks import MODEL_KEY, TOKENIZER_KEY, find_model
from trial.rehearsal.request import Request, known_sound, read_answer, remember_sound

PARTS: tuple[tuple[str, ...], ...] = (
    ("model", "lora"),
    ("model", "data"),
    ("training", "zero_stage", "deepspeed", "objective", "evaluation"),
)
"""Keys whose values are rehearsed in combination; across these parts each value is enough once."""

MOST = 64
"""At most so many combinations of a part are rehearsed; every single value comes first."""

NUMBERS_ONLY = {"lora": {"lora_alpha", "lora_dropout"}}
"""Keys that give no other combination."""

SECONDS = 600.0
"""A rehearsal that takes longer ends without a verdict."""

LOG_TAIL = 400
"""Characters of a failed rehearsal's output that are shown."""


def request_for(spec: SweepSpec, here: bool = True) -> Request:
    """The request that covers a sweep: configurations whose model is on this machine.

    Args:
        spec: The sweep.
        here: Whether trials run on this machine; elsewhere, no trainer is built.
    """
    configs = {_structure(config): config for config in _configs(spec) if _is_here(config)}
    devices = {_device(config) for config in configs.values()} if here else set()
    return Request(tuple(configs.values()), devices.pop() if len(devices) == 1 else "")


def _configs(spec: SweepSpec) -> Iterator[TrialConfig]:
    space = Space.of(spec)
    for part in PARTS:
        for values in itertools.islice(_combinations(space, part), MOST):
            try:
                yield space.configure_values(values)
            except ConfigError:
                # No configuration: a trial of these values is not trained either.
                continue


def _combinations(space: Space, part: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Values by dotted path: first such that every single value occurs, then all combinations."""
    names = [n for n in space.order if any(n == key or n.startswith(f"{key}.") for key in part)]
    single = itertools.chain.from_iterable(variants(space, (name,)) for name in names)
    seen: set[str] = set()
    for values in itertools.chain(single, variants(space, part)):
        if (text := repr(sorted(values.items()))) not in seen:
            seen.add(text)
            yield values


def _structure(config: TrialConfig) -> str:
    """What a rehearsal depends on, as text."""
    return config.model_dump_json(exclude={"origin": True, **NUMBERS_ONLY})


def _is_here(config: TrialConfig) -> bool:
    """Whether model and tokenizer are on this machine."""
    model = config.model
    names = {MODEL_KEY: model.name_or_path, TOKENIZER_KEY: model.tokenizer_name_or_path}
    return all(
        find_model(name, model.revision, key, ask=False)[0] is not None
        for key, name in names.items()
        if name is not None
    )


def _device(config: TrialConfig) -> str:
    """The device to rehearse as; empty for one that is not here, or that one process can hold."""
    device = detected_device() if config.device == "auto" else config.device
    is_here = device == "cpu" or (device == "cuda" and has_cuda_device())
    return device if is_here else ""


class RehearsalError(ConfigError):
    """What keeps a worker from training; its keys are those of a trial's configuration."""


class Rehearsal:
    """One rehearsal, in a process of its own."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.failure = ""
        """Why there is no verdict; empty while there is none yet, or a verdict."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._forked: threading.Thread | None = None

    @cached_property
    def key(self) -> str:
        """Hash of all that the verdict depends on."""
        return self.request.key()

    @property
    def known(self) -> bool:
        """Whether there is nothing to rehearse, or the same request was found sound before."""
        return not self.request.configs or known_sound(self.key)

    def start(self, fork_server: Path | None = None) -> None:
        """Start the process; `fork_server` is the socket of one that has imported everything."""
        self._folder = tempfile.TemporaryDirectory(prefix="gaudi-sweep-rehearsal-")
        self._path("request").write_text(self.request.to_text(), encoding="utf-8")
        if fork_server is None:
            self._start_process()
        else:
            self._forked = threading.Thread(target=self._fork, args=(fork_server,), daemon=True)
            self._forked.start()

    def refuse(self, seconds: float = SECONDS) -> None:
        """Wait for the verdict; `failure` says why there is none, as after a kill.

        Raises:
            RehearsalError: what keeps a worker from training.
        """
        if self._folder is None:
            return
        with self._folder:
            problems = self._answer(seconds)
            if problems is None:
                tail = self._path("log").read_text(encoding="utf-8", errors="replace").strip()
                self.failure = f"the rehearsal ended without a verdict: {tail[-LOG_TAIL:]}"
        self._folder = None
        if problems:
            raise RehearsalError(problems)
        if problems is not None:
            remember_sound(self.key)

    def _answer(self, seconds: float) -> list[Problem] | None:
        """The problems; None where the process has written no answer."""
        if self._forked is not None:
            self._forked.join(seconds)
        if self._process is not None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                self._process.kill()
                self._process.wait()
        try:
            return read_answer(self._path("answer").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _path(self, name: str) -> Path:
        return Path(self._folder.name if self._folder else "", name)

    def _words(self) -> list[str]:
        return [str(self._path("request")), str(self._path("answer"))]

    def _start_process(self) -> None:
        with open(self._path("log"), "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", trial.rehearsal.__name__, *self._words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(self.request),
            )

    def _fork(self, server: Path) -> None:
        """Have the fork server run the rehearsal, and wait for its end; else start a process."""
        script = Path(trial.rehearsal.__file__).with_name("__main__.py")
        with open(os.devnull, "rb") as nothing, open(self._path("log"), "wb") as log:
            files = (nothing.fileno(), log.fileno(), log.fileno())
            words, environment = [str(script), *self._words()], _environment(self.request)
            code = request_worker(str(server), words, files, environment)
        if code is None:
            self._start_process()
            if self._process is not None:
                self._process.wait()


def _environment(request: Request) -> dict[str, str]:
    """Environment variables of the process, as a worker has them."""
    root = str(Path(trial.rehearsal.__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = process_environment(request.device or "cpu")
    return {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)}
