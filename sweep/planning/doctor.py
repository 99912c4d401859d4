"""Check whether this machine is ready for a sweep: one finding a line, with what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
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
"""Free space below which checkpoints may not fit."""

SLOW_SYNC_SECONDS = 0.1
"""A durable write slower than this delays training: each evaluation makes one."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding, and what to do about it."""

    level: Level
    subject: str
    found: str
    advice: str = ""


Check = Callable[[Path], Iterator[Diagnosis]]
"""Given the folder of all studies, it yields what it finds."""


def examine(runs: Path, checks: Sequence[Check] | None = None) -> Iterator[Diagnosis]:
    """Run all checks; each yields one or more findings and none stops the others."""
    for check in CHECKS if checks is None else checks:
        try:
            yield from check(runs)
        except Exception as error:  # A check that cannot run is a finding, not a crash.
            subject = check.__name__.removeprefix("check_")
            yield Diagnosis("warning", subject, f"could not be checked: {error}")


def check_python(runs: Path) -> Iterator[Diagnosis]:
    """The version of Python."""
    yield Diagnosis("ok", "python", sys.version.split()[0])


def check_packages(runs: Path) -> Iterator[Diagnosis]:
    """Installed versions against the pins of pyproject.toml, where the checkout is at hand."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.exists():
        yield Diagnosis("warning", "packages", "no pyproject.toml beside the package")
        return
    pins = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    wrong = [text for text in map(mismatch, map(Requirement, pins)) if text]
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


def mismatch(pin: Requirement) -> str:
    """How the installed version of a package differs from its pin; empty when it does not."""
    try:
        version = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        return f"{pin.name} is missing"
    if pin.specifier.contains(version, prereleases=True):
        return ""
    return f"{pin.name} is {version}, pinned {pin.specifier}"


def check_gaudi(runs: Path) -> Iterator[Diagnosis]:
    """Gaudi's software, its cards, and the mode of its PyTorch bridge."""
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
        text = "unset: the harness sets it, by training.use_lazy_mode (0, eager, unless asked for)"
        yield Diagnosis("ok", "PT_HPU_LAZY_MODE", text)
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
        message = (done.stderr.strip() or done.stdout.strip()).split("\n")[0]
        return Diagnosis("error", "hl-smi", message, "are the cards given to this container?")
    return _describe_cards(done.stdout.strip().splitlines())


def _describe_cards(rows: list[str]) -> Diagnosis:
    """The cards by generation, with the memory per card that the preflight assumes.

    Args:
        rows: Lines of `hl-smi`: index, module id, name.
    """
    names = [row.rpartition(",")[2].strip() for row in rows]
    known = {card for name in names if (card := card_generation(name))}
    if not rows or len(known) != 1:
        advice = "say resources.memory_per_device_gb (in GiB): no plan can know their memory"
        found = f"{len(rows)} cards: {', '.join(sorted(set(names))) or 'no name'}"
        return Diagnosis("warning", "hl-smi", found, advice)
    card = known.pop()
    return Diagnosis("ok", "hl-smi", f"{len(rows)} cards, {card} with {CARD_GIB[card]:g} GiB each")


def check_cuda(runs: Path) -> Iterator[Diagnosis]:
    """NVIDIA GPUs, by `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        yield Diagnosis("ok", "cuda", "no NVIDIA GPU")
        return
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    cards = "; ".join(done.stdout.strip().splitlines())
    level: Level = "ok" if done.returncode == 0 and cards else "warning"
    yield Diagnosis(level, "cuda", cards or done.stderr.strip()[:200])


def check_cores(runs: Path) -> Iterator[Diagnosis]:
    """CPU cores that this process may use."""
    cores = detect.usable_cores()
    yield Diagnosis("ok", "cpu", f"{cores} cores: {cores} workers of one thread on device cpu")


def check_ray(runs: Path) -> Iterator[Diagnosis]:
    """Ray's version, and whether the cluster of RAY_ADDRESS answers."""
    address = os.environ.get("RAY_ADDRESS")
    version = metadata.version("ray")
    if not address:
        yield Diagnosis("ok", "ray", f"{version}, a local one will be started")
        return
    if _is_reachable(address):
        yield Diagnosis("ok", "ray", f"{version}, the cluster at {address} answers")
    else:
        advice = "start the cluster, or unset RAY_ADDRESS"
        yield Diagnosis("error", "ray", f"no cluster answers at {address}", advice)


def _is_reachable(address: str) -> bool:
    """Whether a server listens at `host:port` or `ray://host:port`; Ray itself resolves `auto`."""
    from sweep.ray_backend.cluster import is_reachable

    if address.rpartition(":")[2].isdecimal():
        return is_reachable(address)
    words = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    return subprocess.run(words, capture_output=True, timeout=120).returncode == 0


def check_disk(runs: Path, low_gb: float = LOW_DISK_GB) -> Iterator[Diagnosis]:
    """Free space and write times of the folder of studies."""
    existing = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    level: Level = "ok" if free >= low_gb else "warning"
    advice = "" if level == "ok" else "checkpoints may not fit: free some, or use --runs"
    yield Diagnosis(level, "disk", f"{free:.0f} GB free under {existing}", advice)
    if not os.access(existing, os.W_OK):
        yield Diagnosis("error", "disk", f"{existing} cannot be written", "use --runs")
        return
    yield _sync_time(existing)


def _sync_time(parent: Path) -> Diagnosis:
    """The median time of a durable write (with fsync); network file systems can be slow."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
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


def check_model_and_data(runs: Path) -> Iterator[Diagnosis]:
    """The built-in model and data, and whether the Hugging Face hub may be used."""
    from trial.config.trial_config import TrialConfig
    from trial.preflight.checks import preflight

    problems = preflight(TrialConfig())
    if problems:
        yield Diagnosis("error", "built-in model and data", str(problems[0]), "reinstall")
    else:
        yield Diagnosis("ok", "built-in model and data", "there")
    offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
    yield Diagnosis("ok", "hub", "offline (HF_HUB_OFFLINE)" if offline else "used for hub ids only")


CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_cores,
    check_gaudi,
    check_cuda,
    check_ray,
    check_disk,
    check_model_and_data,
)
