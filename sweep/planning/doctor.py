"""Is this machine ready for a sweep? One line for each thing, with what to do about it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from trial.devices import detect, gaudi_release
from trial.devices.device_memory import CARD_GIB, card_generation
from trial.store.files import write_atomically

Level = Literal["ok", "warning", "error"]

LOW_DISK_GB = 10.0
SLOW_SYNC_SECONDS = 0.1
"""A durable write slower than this is felt: each evaluation makes one."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found about one thing."""

    level: Level
    subject: str
    found: str
    advice: str = ""


def examine(runs: Path) -> Iterator[Diagnosis]:
    """Look at everything; each check says one or more lines and none stops the others."""
    for check in CHECKS:
        try:
            yield from check(runs)
        except Exception as error:  # A check that cannot run is a finding, not a crash.
            yield Diagnosis("warning", check.__name__.strip("_"), f"could not be checked: {error}")


def _python(runs: Path) -> Iterator[Diagnosis]:
    yield Diagnosis("ok", "python", sys.version.split()[0])


def _packages(runs: Path) -> Iterator[Diagnosis]:
    """Installed versions against the pins of pyproject.toml, where the checkout is at hand."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.exists():
        yield Diagnosis("warning", "packages", "no pyproject.toml beside the package")
        return
    pins = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    wrong = [text for text in map(_mismatch, map(Requirement, pins)) if text]
    own = detect.has_gaudi_software()
    wrong = [
        text for text in wrong if not (own and text.partition(" ")[0] in gaudi_release.IMAGE_OWN)
    ]
    if wrong:
        advice = "make clean install, or accept that this set was not tested together"
        yield Diagnosis("warning", "packages", "; ".join(wrong), advice)
    else:
        tested = len(pins) - len(gaudi_release.IMAGE_OWN) * own
        besides = f"; {' and '.join(gaudi_release.IMAGE_OWN)} are the image's own" if own else ""
        yield Diagnosis("ok", "packages", f"{tested} pinned packages as tested{besides}")


def _mismatch(pin: Requirement) -> str:
    try:
        version = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        return f"{pin.name} is missing"
    if pin.specifier.contains(version, prereleases=True):
        return ""
    return f"{pin.name} is {version}, pinned {pin.specifier}"


def _gaudi(runs: Path) -> Iterator[Diagnosis]:
    if not detect.has_gaudi_software():
        yield Diagnosis("ok", "gaudi", "not a Gaudi machine")
        return
    verdict = gaudi_release.check_versions()
    yield Diagnosis("ok", "gaudi", verdict.installed)
    for remark in verdict.remarks:
        yield Diagnosis("warning", "gaudi", remark)
    for problem in gaudi_release.image_problems():
        yield Diagnosis("error", "gaudi", problem)
    yield _gaudi_cards()
    mode = os.environ.get("PT_HPU_LAZY_MODE")
    if mode is None:
        said = "unset: the harness sets it, by training.use_lazy_mode (0, eager, unless asked for)"
        yield Diagnosis("ok", "PT_HPU_LAZY_MODE", said)
    else:
        advice = "workers set their own; `python -m trial` refuses a mode that its trial denies"
        yield Diagnosis("ok", "PT_HPU_LAZY_MODE", mode, advice)


def _gaudi_cards() -> Diagnosis:
    if gaudi_release.is_stand_in():
        return Diagnosis("ok", "hl-smi", "not asked: a stand-in has no cards")
    if shutil.which("hl-smi") is None:
        return Diagnosis("error", "hl-smi", "not found", "is the Gaudi driver installed?")
    words = ["hl-smi", "-Q", "index,module_id,name", "-f", "csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).split("\n")[0]
        return Diagnosis("error", "hl-smi", said, "are the cards given to this container?")
    return _cards_said(done.stdout.strip().splitlines())


def _cards_said(rows: list[str]) -> Diagnosis:
    """Cards by generation, with the memory that plans reckon with."""
    names = [row.rpartition(",")[2].strip() for row in rows]
    known = {card for name in names if (card := card_generation(name))}
    if not rows or len(known) != 1:
        advice = "say resources.memory_per_device_gb: no plan can know their memory"
        found = f"{len(rows)} cards: {', '.join(sorted(set(names))) or 'no name'}"
        return Diagnosis("warning", "hl-smi", found, advice)
    card = known.pop()
    return Diagnosis("ok", "hl-smi", f"{len(rows)} cards, {card} with {CARD_GIB[card]:g} GiB each")


def _cuda(runs: Path) -> Iterator[Diagnosis]:
    if shutil.which("nvidia-smi") is None:
        yield Diagnosis("ok", "cuda", "no NVIDIA GPU")
        return
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    cards = "; ".join(done.stdout.strip().splitlines())
    level: Level = "ok" if done.returncode == 0 and cards else "warning"
    yield Diagnosis(level, "cuda", cards or done.stderr.strip()[:200])


def _cores(runs: Path) -> Iterator[Diagnosis]:
    cores = len(os.sched_getaffinity(0))
    yield Diagnosis("ok", "cpu", f"{cores} cores: {cores} workers of one thread on device cpu")


def _ray(runs: Path) -> Iterator[Diagnosis]:
    address = os.environ.get("RAY_ADDRESS")
    version = metadata.version("ray")
    if not address:
        yield Diagnosis("ok", "ray", f"{version}, a local one will be started")
        return
    if _answers(address):
        yield Diagnosis("ok", "ray", f"{version}, the cluster at {address} answers")
    else:
        advice = "start the cluster, or unset RAY_ADDRESS"
        yield Diagnosis("error", "ray", f"no cluster answers at {address}", advice)


def _answers(address: str) -> bool:
    """Whether something listens at `host:port` or `ray://host:port`; `auto` asks Ray itself."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
        return subprocess.run(words, capture_output=True, timeout=120).returncode == 0
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _disk(runs: Path) -> Iterator[Diagnosis]:
    place = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    level: Level = "ok" if free >= LOW_DISK_GB else "warning"
    advice = "" if level == "ok" else "checkpoints may not fit: free some, or use --runs"
    yield Diagnosis(level, "disk", f"{free:.0f} GB free under {place}", advice)
    if not os.access(place, os.W_OK):
        yield Diagnosis("error", "disk", f"{place} cannot be written", "use --runs")
        return
    yield _sync_time(place)


def _sync_time(place: Path) -> Diagnosis:
    """How long a durable write takes: network file systems can be slow at it."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        times = []
        for number in range(5):
            began = time.perf_counter()
            write_atomically(Path(folder, f"{number}.json"), "{}\n")
            times.append(time.perf_counter() - began)
    median = sorted(times)[2]
    slow = median > SLOW_SYNC_SECONDS
    advice = "each evaluation waits so long; a faster file system helps" if slow else ""
    found = f"a durable write takes {median * 1000:.1f} ms"
    return Diagnosis("warning" if slow else "ok", "file system", found, advice)


def _model_and_data(runs: Path) -> Iterator[Diagnosis]:
    from trial.config.trial_config import TrialConfig
    from trial.preflight.checks import preflight

    problems = preflight(TrialConfig())
    if problems:
        yield Diagnosis("error", "built-in model and data", str(problems[0]), "reinstall")
    else:
        yield Diagnosis("ok", "built-in model and data", "there")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield Diagnosis("ok", "hub", "offline (HF_HUB_OFFLINE)" if offline else "used for hub ids only")


CHECKS: tuple[Callable[[Path], Iterator[Diagnosis]], ...] = (
    _python,
    _packages,
    _cores,
    _gaudi,
    _cuda,
    _ray,
    _disk,
    _model_and_data,
)
