"""Which release of Gaudi's software is installed, and which versions belong to it. Torch-free.

From optimum-habana's own release notes and requirements; nothing here has been run on a device.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from trial.config.trial_config import TrialConfig
from trial.devices.detect import has_gaudi_software

PLUGIN = "habana-torch-plugin"
"""The distribution behind `habana_frameworks`; its version is the software's."""
IMAGE_OWN = ("torch", "deepspeed")
"""Packages whose builds come with Gaudi's image; an install must use them and not replace them."""
INSTALL_ADVICE = {
    "torch": "take Gaudi's PyTorch image, or its installer on a bare host",
    "deepspeed": "pip install git+https://github.com/HabanaAI/DeepSpeed.git@1.23.0, outside of the "
    "virtual environment",
}
STAND_IN = "stand-in"
"""Text in the summary of the distribution that imitates Habana's software in tests."""


@dataclass(frozen=True, slots=True)
class Release:
    """Versions that belong to one release of the Gaudi software."""

    packages: tuple[tuple[str, str], ...]
    """Distribution and version specifier, pairs."""
    deepspeed: str
    """Tag of Habana's DeepSpeed fork in its image."""


RELEASES: dict[str, Release] = {
    "1.24": Release(
        (
            ("optimum-habana", ">=1.21,<1.22"),
            ("transformers", ">=4.55,<4.56"),
            ("accelerate", ">=1.7,<=1.10.1"),
        ),
        "1.23.0",
    ),
    "1.23": Release(
        (
            ("optimum-habana", ">=1.20,<1.21"),
            ("transformers", ">=4.55,<4.56"),
            ("accelerate", "<=1.10.1"),
        ),
        "1.23.0",
    ),
    "1.22": Release(
        (
            ("optimum-habana", ">=1.19,<1.20"),
            ("transformers", ">=4.51,<4.52"),
            ("accelerate", ">=1.7"),
        ),
        "1.22.0",
    ),
}
"""Gaudi software by its first two numbers, newest first."""


@dataclass(frozen=True, slots=True)
class VersionCheck:
    """The installed versions, and remarks on those that do not belong together."""

    installed: str
    remarks: tuple[str, ...] = ()


def plugin_version() -> str | None:
    """The version of the Gaudi software, from its distribution."""
    return _version(PLUGIN)


def is_stand_in() -> bool:
    """Whether the installed software is the imitation that tests use."""
    try:
        return STAND_IN in str(metadata.metadata(PLUGIN).json.get("summary", "")).lower()
    except metadata.PackageNotFoundError:
        return False


def check_versions() -> VersionCheck:
    """Compare the installed versions with those that belong to the Gaudi release."""
    software = plugin_version()
    wanted = RELEASES.get(_short(software)) if software else None
    names = [name for name, _ in RELEASES["1.24"].packages]
    versions = {name: _version(name) or "none" for name in (*names, "deepspeed", "torch")}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    installed = f"Gaudi software {software or 'of an unknown release'}, {listed}"
    if is_stand_in():
        installed += " (a stand-in for tests: no device, and no figure of it is a Gaudi's)"
    return VersionCheck(installed, tuple(_remarks(software, wanted, versions)))


def image_problems() -> list[str]:
    """Why torch or DeepSpeed on a Gaudi machine is not the build of its image."""
    problems = []
    for name in IMAGE_OWN if has_gaudi_software() and not is_stand_in() else ():
        spec = importlib.util.find_spec(name)
        if spec is None:
            problems.append(f"{name} is not installed: {INSTALL_ADVICE[name]}")
        elif sys.prefix != sys.base_prefix and (spec.origin or "").startswith(sys.prefix):
            problems.append(f"{name} is in this virtual environment, and hides the one for Gaudi")
    return problems


def _remarks(
    software: str | None, wanted: Release | None, versions: dict[str, str]
) -> Iterator[str]:
    if software is None:
        yield f"{PLUGIN} says no version: not installed by the image's own pip?"
    elif wanted is None:
        known = ", ".join(RELEASES)
        yield (
            f"Gaudi software {_short(software)} is not known here ({known} are): nobody has said "
            "which optimum-habana goes with it; if it fails, take an image of a known release"
        )
    else:
        for name, rule in wanted.packages:
            if not _fits(versions[name], rule):
                yield f"{name} {versions[name]}: Gaudi software {_short(software)} goes with {rule}"
        if "+" not in versions["deepspeed"] and not is_stand_in():
            yield (
                f"deepspeed {versions['deepspeed']} does not look like Habana's fork "
                f"(tag {wanted.deepspeed}): `pip show deepspeed` should name the image's own"
            )


def _fits(version: str, rule: str) -> bool:
    try:
        return SpecifierSet(rule).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _short(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def settings_lines(config: TrialConfig, adapter: str, base: str) -> list[str]:
    """The settings of a trial on HPU as log lines; `adapter` and `base` are names of dtypes."""
    lazy = os.environ.get("PT_HPU_LAZY_MODE", "unset")
    mode = {"0": "eager", "1": "lazy"}.get(lazy, "unknown")
    cache = os.environ.get("PT_HPU_RECIPE_CACHE_CONFIG", "")
    autocast = "bf16 autocast" if config.training.get("bf16") else "no autocast"
    inline = not isinstance(config.gaudi_config, str)
    gaudi = config.gaudi_config if inline else f"{config.gaudi_config} (folder or hub id)"
    attention = config.model.attn_implementation or "as the model has it"
    checkpointing = "on" if config.training.get("gradient_checkpointing") else "off"
    check = check_versions()
    return [
        check.installed,
        *(f"warning: {remark}" for remark in check.remarks),
        f"PT_HPU_LAZY_MODE={lazy} ({mode}); compiled graphs {_cache_text(cache)}",
        f"base weights {base}, adapter {adapter}, {autocast}; GaudiConfig {gaudi}",
        f"attention {attention}; gradient checkpointing {checkpointing}",
    ]


def _cache_text(cache: str) -> str:
    folder = cache.partition(",")[0]
    return f"are kept in {folder}" if folder else "are not kept"


def dtype_names(parameters: Iterable[Any]) -> str:
    """The dtypes of tensors, each once: `bfloat16 and float32`."""
    return " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in parameters}))


def compilation_metrics(stats: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a trial from the statistics of Habana's `graph_compilation` counter.

    `TotalTime` is read as microseconds, from the examples of its documentation; not seen on a
    device.
    """
    return {
        "graph_compilations": float(stats.get("TotalNumber", 0)),
        "compile_seconds": float(stats.get("TotalTime", 0)) / 1e6,
    }


if __name__ == "__main__":
    # `make install` ends with this on a Gaudi machine.
    print(check_versions().installed)
    sys.exit("\n".join(image_problems()) or 0)
