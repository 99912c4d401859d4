"""What a training process needs in its environment before Python loads torch. Torch-free."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trial.config.trial_config import TrialConfig

BEFORE_START: dict[str, dict[str, str]] = {
    # Its default changed between releases of the Gaudi software, and optimum-habana reads "unset"
    # as lazy while it refuses lazy arguments in eager mode: always say it.
    "hpu": {"PT_HPU_LAZY_MODE": "0"},
    "cuda": {},
    "cpu": {},
}

ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}

LAZY_ZERO_3 = {
    # optimum-habana's 70B recipe: shorter graphs, so that gathered weights are freed in between.
    "PT_HPU_MAX_COMPOUND_OP_SIZE": "10",
}
"""For ZeRO-3 in lazy mode, unless the user has set them."""

RECIPES = "PT_HPU_RECIPE_CACHE_CONFIG"
RECIPES_MB = 1024
"""The documentation's default size; the bridge removes the oldest graphs beyond it."""
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "beegfs", "gpfs", "fuse.sshfs", "9p")
"""File systems on which the cache's file locks cannot be relied on."""


def process_environment(
    device: str,
    lazy: bool = False,
    study: Path | None = None,
    *,
    zero_stage: int | None = None,
    several_nodes: bool = False,
) -> dict[str, str]:
    """Variables to set before a process for `device` imports anything; `auto` gets all of them.

    `lazy` is `training.use_lazy_mode`: the bridge's mode must agree with the trainer's. The trials
    of one `study` share their compiled graphs.
    """
    parts = BEFORE_START.values() if device == "auto" else [BEFORE_START[device]]
    found = {**ALWAYS, **{name: value for part in parts for name, value in part.items()}}
    if "PT_HPU_LAZY_MODE" not in found:
        return found
    if lazy:
        found["PT_HPU_LAZY_MODE"] = "1"
        if zero_stage == 3:
            found |= {name: os.environ.get(name, value) for name, value in LAZY_ZERO_3.items()}
    if study is not None:
        found[RECIPES] = recipe_cache(study, several_nodes=several_nodes)
    return found


def set_environment(config: TrialConfig, folder: Path) -> None:
    """Set what nobody has set, for a trial that is trained by hand from its folder."""
    study = folder.parent.parent if folder.parent.name == "trials" else folder
    lazy = bool(config.training.get("use_lazy_mode"))
    wanted = process_environment(config.device, lazy, study, zero_stage=config.zero_stage)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def recipe_cache(
    study: Path, *, several_nodes: bool = False, environ: Mapping[str, str] = os.environ
) -> str:
    """Where the trials of a study keep compiled graphs, as the bridge wants it: path,delete,MB.

    In the study's folder; on each node's own disk when that is a network's, where the cache's locks
    do not hold. Who sets the variable has said otherwise.
    """
    if told := environ.get(RECIPES):
        return told
    folder = study.resolve() / "recipes"
    if several_nodes or is_network(folder):
        mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        folder = Path(tempfile.gettempdir(), f"gaudi-sweep-recipes-{study.name}-{mark}")
    # Three fields: every release reads them. `false` keeps what earlier trials compiled.
    return f"{folder},false,{RECIPES_MB}"


def make_recipe_folder() -> None:
    """Make the folder that the environment names: nobody says that the bridge does."""
    folder = os.environ.get(RECIPES, "").partition(",")[0]
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)


def is_network(path: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether a path lies on a network file system, as far as Linux says."""
    try:
        rows = [line.split() for line in mounts.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return False
    inside = [row for row in rows if len(row) > 2 and path.is_relative_to(_plain(row[1]))]
    found = [(len(row[1]), row[2]) for row in inside]
    return bool(found) and max(found)[1] in NETWORK


def _plain(mount: str) -> str:
    """A mount point without the kernel's escape of a space."""
    return mount.replace("\\040", " ")
