"""Which release of Gaudi's software is here, and which other versions belong to it. Torch-free.

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
"""Builds that belong to the image: an install must see them and never replace them."""
MISSING = {
    "torch": "take Gaudi's PyTorch image, or its installer on a bare host",
    "deepspeed": "pip install git+https://github.com/HabanaAI/DeepSpeed.git@1.23.0, outside of the "
    "virtual environment",
}
STAND_IN = "stand-in"
"""What the summary of a stand-in's distribution says of itself."""


@dataclass(frozen=True, slots=True)
class Release:
    """What goes with one release of the Gaudi software."""

    packages: tuple[tuple[str, str], ...]
    """Distributions with the versions that were made for it."""
    deepspeed: str
    """Tag of the DeepSpeed fork that its image brings."""


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
class Verdict:
    """What was found, and what is to be said of it; nothing when all belongs together."""

    found: str
    remarks: tuple[str, ...] = ()


def plugin_version() -> str | None:
    """The version of the Gaudi software, from its distribution."""
    return _version(PLUGIN)


def is_stand_in() -> bool:
    """Whether a stand-in for tests poses as Habana's software."""
    try:
        return STAND_IN in str(metadata.metadata(PLUGIN).json.get("summary", "")).lower()
    except metadata.PackageNotFoundError:
        return False


def judge() -> Verdict:
    """The release that is here, and what of the rest was not made for it."""
    software = plugin_version()
    wanted = RELEASES.get(_short(software)) if software else None
    names = [name for name, _ in RELEASES["1.24"].packages]
    versions = {name: _version(name) or "none" for name in (*names, "deepspeed", "torch")}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    found = f"Gaudi software {software or 'of an unknown release'}, {listed}"
    if is_stand_in():
        found = f"{found} (a stand-in for tests: no device, and no figure of it is a Gaudi's)"
    return Verdict(found, tuple(_remarks(software, wanted, versions)))


def image_problems() -> list[str]:
    """What keeps torch and DeepSpeed on a Gaudi machine from being its own builds."""
    found = []
    for name in IMAGE_OWN if has_gaudi_software() and not is_stand_in() else ():
        spec = importlib.util.find_spec(name)
        if spec is None:
            found.append(f"{name} is not installed: {MISSING[name]}")
        elif sys.prefix != sys.base_prefix and (spec.origin or "").startswith(sys.prefix):
            found.append(f"{name} is in this virtual environment, and hides the one for Gaudi")
    return found


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


def settings(config: TrialConfig, adapter: str, base: str) -> list[str]:
    """What a trial on HPU says of its settings in its log; `adapter` and `base` are types."""
    lazy = os.environ.get("PT_HPU_LAZY_MODE", "unset")
    mode = {"0": "eager", "1": "lazy"}.get(lazy, "unknown")
    cache = os.environ.get("PT_HPU_RECIPE_CACHE_CONFIG", "")
    autocast = "bf16 autocast" if config.training.get("bf16") else "no autocast"
    inline = not isinstance(config.gaudi_config, str)
    gaudi = config.gaudi_config if inline else f"{config.gaudi_config} (folder or hub id)"
    attention = config.model.attn_implementation or "as the model has it"
    checkpointing = "on" if config.training.get("gradient_checkpointing") else "off"
    verdict = judge()
    return [
        verdict.found,
        *(f"warning: {remark}" for remark in verdict.remarks),
        f"PT_HPU_LAZY_MODE={lazy} ({mode}); compiled graphs {_kept(cache)}",
        f"base weights {base}, adapter {adapter}, {autocast}; GaudiConfig {gaudi}",
        f"attention {attention}; gradient checkpointing {checkpointing}",
    ]


def _kept(cache: str) -> str:
    folder = cache.partition(",")[0]
    return f"are kept in {folder}" if folder else "are not kept"


def types_of(parameters: Iterable[Any]) -> str:
    """The types of tensors in words, each once."""
    return " and ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in parameters}))


def compilation(stats: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a trial from the bridge's count of compiled graphs.

    Its time is taken for microseconds, as its documentation's examples read; not seen on a device.
    """
    return {
        "graph_compilations": float(stats.get("TotalNumber", 0)),
        "compile_seconds": float(stats.get("TotalTime", 0)) / 1e6,
    }


if __name__ == "__main__":
    # `make install` ends with this on a Gaudi machine.
    print(judge().found)
    sys.exit("\n".join(image_problems()) or 0)
