"""Environment variables that must be set before a training process loads torch. Torch-free."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trial.store.cache_dir import make_private

if TYPE_CHECKING:
    from trial.config.trial_config import TrialConfig

logger = logging.getLogger(__name__)

BEFORE_START: dict[str, dict[str, str]] = {
    # Always set: the default changed between releases of the Gaudi software, and optimum-habana
    # reads "unset" as lazy, while it refuses lazy arguments in eager mode.
    "hpu": {"PT_HPU_LAZY_MODE": "0"},
    "cuda": {},
    "cpu": {},
}
"""Variables by device."""

ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Variables for every device."""

LAZY_ZERO_3 = {
    # From optimum-habana's Llama 70B example: shorter graphs free gathered weights in between.
    "PT_HPU_MAX_COMPOUND_OP_SIZE": "10",
}
"""Set for ZeRO stage 3 in lazy mode, unless the user has."""

RECIPES = "PT_HPU_RECIPE_CACHE_CONFIG"
"""Habana's variable for the cache of compiled graphs, which it calls recipes."""
RECIPES_PREFIX = "gaudi-sweep-recipes-"
"""Of a cache's folder among the temporary files of all users."""
RECIPES_MB = 1024
"""Size limit of the cache in MB, the default of Habana's documentation; the oldest go first."""
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "beegfs", "gpfs", "fuse.sshfs", "9p")
"""Types of file systems on which the cache's file locks are unreliable."""


def process_environment(
    device: str,
    lazy: bool = False,
    study: Path | None = None,
    *,
    zero_stage: int | None = None,
    several_nodes: bool = False,
) -> dict[str, str]:
    """Variables to set before a process for `device` imports torch.

    Args:
        device: `hpu`, `cuda`, `cpu`, or `auto` for the variables of all three.
        lazy: `training.use_lazy_mode`, with which Habana's own mode must agree.
        study: Folder of the study, whose trials share a cache of compiled graphs.
        zero_stage: The trials' `zero_stage`.
        several_nodes: Whether the processes run on more than one node.
    """
    parts = BEFORE_START.values() if device == "auto" else [BEFORE_START[device]]
    variables = {**ALWAYS, **{name: value for part in parts for name, value in part.items()}}
    if "PT_HPU_LAZY_MODE" not in variables:
        return variables
    if lazy:
        variables["PT_HPU_LAZY_MODE"] = "1"
        if zero_stage == 3:
            variables |= {name: os.environ.get(name, value) for name, value in LAZY_ZERO_3.items()}
    if study is not None:
        variables[RECIPES] = recipe_cache(study, several_nodes=several_nodes)
    return variables


def set_environment(config: TrialConfig, folder: Path) -> None:
    """Set the variables that are not set yet, for a trial started by `python -m trial`."""
    study = folder.parent.parent if folder.parent.name == "trials" else folder
    lazy = bool(config.training.get("use_lazy_mode"))
    wanted = process_environment(config.device, lazy, study, zero_stage=config.zero_stage)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def recipe_cache(
    study: Path, *, several_nodes: bool = False, environ: Mapping[str, str] = os.environ
) -> str:
    """The cache of compiled graphs of a study, in Habana's format: path, delete at start, MB.

    It lies in the study's folder; on several nodes or a network file system in the temporary folder
    of each node, since the cache relies on file locks. A value that is set already is kept.
    """
    if given := environ.get(RECIPES):
        return given
    folder = study.resolve() / "recipes"
    if several_nodes or is_on_network(folder):
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        folder = Path(tempfile.gettempdir(), f"{RECIPES_PREFIX}{os.geteuid()}-{study.name}-{mark}")
    # Every release reads these three fields. `false` keeps what earlier trials compiled.
    return f"{folder},false,{RECIPES_MB}"


def make_recipe_folder() -> None:
    """Make the cache's folder: Habana does not document that its software does.

    Among temporary files it must be this user's alone, since what it holds is run on the device;
    where it is not, there is no cache.
    """
    folder = Path(os.environ.get(RECIPES, "").partition(",")[0])
    if folder.name.startswith(RECIPES_PREFIX):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not make_private(folder):
            logger.warning("no cache of compiled graphs: %s is another user's", folder)
            del os.environ[RECIPES]
    elif folder.name:
        folder.mkdir(parents=True, exist_ok=True)


def is_on_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path lies on a network file system, by Linux's table of mounts."""
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    inside = [row for row in rows if len(row) > 2 and path.is_relative_to(_unescaped(row[1]))]
    mounted = [(len(row[1]), row[2]) for row in inside]
    return bool(mounted) and max(mounted)[1] in NETWORK


def _unescaped(mount: str) -> str:
    """A mount point without the kernel's escape of a space."""
    return mount.replace("\\040", " ")
