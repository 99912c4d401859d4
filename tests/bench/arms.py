"""Arms, rounds and what came out: each command in a process of its own, arms taking turns.

A busy machine is busy for all arms of a round, so ratios are taken within rounds.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Told = dict[str, float]
"""What one run of an arm measured, by name."""

LIMIT = 900.0
"""Seconds after which a run is given up."""

LOOK_EVERY = 0.01
"""Seconds between two looks at whether something has happened."""

TAIL = 2000

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class NotMeasuredError(RuntimeError):
    """An arm cannot be run, and says why."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to do the work."""

    name: str
    command: Callable[[Path], Sequence[str]]
    """The command; a fresh scratch folder is given."""
    read: Callable[[Path, Told, float], Told] = lambda folder, told, began: told
    """What else is to be read from the scratch folder; `began` is the clock at the start."""
    prepare: Callable[[Path], None] = lambda folder: None
    """What must be there before, untimed."""
    until: Callable[[Path], bool] | None = None
    """When this first holds is noted as `seconds_until`."""


@dataclass(frozen=True, slots=True)
class Reach:
    """One line of the table: a figure of ours beside a peer's."""

    what: str
    ours: tuple[str, str]
    """Arm and name of the value."""
    peer: tuple[str, str] | None
    """The same of the peer; `one + other` is the sum of two arms. None: ours as it is."""
    bound: float | None = None
    """None: only told."""
    at_least: bool = False
    """Whether the ratio must be at least the bound; at most else."""
    turned: bool = False
    """Whether the ratio is the peer's value over ours."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Arms that take turns, and what is read off them."""

    key: str
    title: str
    arms: Sequence[Arm]
    reaches: Sequence[Reach]
    rounds: int = 5
    notes: Sequence[str] = ()


@dataclass(slots=True)
class Measured:
    """All rounds of a figure."""

    figure: Figure
    told: dict[str, list[Told]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    """The machine's load average at each round."""

    def values(self, arm: str, name: str) -> list[float]:
        """One value of an arm in every round; of `one + other` the sum."""
        parts = [
            [told[name] for told in self.told.get(part, []) if name in told]
            for part in arm.split(" + ")
        ]
        return [sum(values) for values in zip(*parts, strict=False)]

    def ratios(self, reach: Reach) -> list[float]:
        """The ratio of each round; without a peer our own value."""
        if reach.peer is None:
            return self.values(*reach.ours)
        ours, peers = self.values(*reach.ours), self.values(*reach.peer)
        pairs = zip(ours, peers, strict=False)
        return [peer / own if reach.turned else own / peer for own, peer in pairs]

    def median(self, arm: str, name: str) -> float | None:
        """The middle of the rounds."""
        values = self.values(arm, name)
        return statistics.median(values) if values else None

    def record(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        return {"told": self.told, "failures": self.failures, "load": self.load}


def measure(figure: Figure, scratch: Path, say: Callable[[str], None]) -> Iterator[Measured]:
    """What is known after each round of all arms; an arm that fails is left out from then on."""
    found = Measured(figure)
    for number in range(figure.rounds):
        found.load.append(round(os.getloadavg()[0], 2))
        for arm in figure.arms:
            if arm.name in found.failures:
                continue
            folder = scratch / figure.key / f"{number}-{arm.name}"
            folder.mkdir(parents=True)
            try:
                told = run(arm, folder)
            except NotMeasuredError as error:
                found.failures[arm.name] = str(error)
                say(f"{figure.key} {arm.name}: not measured: {error}")
                continue
            found.told.setdefault(arm.name, []).append(told)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
            say(f"{figure.key} round {number + 1}/{figure.rounds} {arm.name}: {shown}")
        yield found


def run(arm: Arm, folder: Path) -> Told:
    """One run: what its last line says, and the wall seconds of its process.

    Raises:
        NotMeasuredError: it failed, took too long, or says that it cannot be done.
    """
    arm.prepare(folder)
    command = list(arm.command(folder))
    wall, began, spent = time.time(), time.perf_counter(), _cpu_seconds()
    with _watched(arm, folder) as seen:
        code, output, errors = _process(command, folder)
    seconds, spent = time.perf_counter() - began, _cpu_seconds() - spent
    if code != 0:
        last = (errors.strip() or output.strip())[-TAIL:].splitlines()
        (folder / "failed.txt").write_text(f"{command}\n{output}\n{errors}")
        raise NotMeasuredError(f"exit code {code}: {last[-1] if last else 'no output'}")
    told: dict[str, Any] = {"seconds": seconds, "cpu_seconds": spent, "load": os.getloadavg()[0]}
    if seen:
        told["seconds_until"] = seen[0] - began
    lines = output.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        told |= json.loads(lines[-1])
    if "not_measured" in told:
        raise NotMeasuredError(told["not_measured"])
    return arm.read(folder, told, wall)


def _cpu_seconds() -> float:
    """Of all processes that were waited for; those that Ray starts are not among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _watched(arm: Arm, folder: Path) -> Iterator[list[float]]:
    """Notes on the clock when the arm's condition first holds."""
    seen: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while arm.until is not None and not seen and not ended.wait(LOOK_EVERY):
            if arm.until(folder):
                seen.append(time.perf_counter())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _process(command: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors; the process group is ended when it takes too long."""
    environment = {**os.environ, **ENVIRONMENT}
    # Bytecode is cached for both sides, as it is wherever nobody forbids it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise NotMeasuredError(f"gave up after {LIMIT:.0f} s") from None
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise
    return process.returncode, output, errors


def gpu_name() -> str:
    """The GPU that is measured on."""
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except OSError:
        return "no GPU"
    return f"one {done.stdout.splitlines()[0]}" if done.returncode == 0 else "no GPU"


def machine() -> Mapping[str, Any]:
    """What was measured on."""
    import platform

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(total / 1e9),
        "python": sys.version.split()[0],
    }
