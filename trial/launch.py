"""What a training process needs in its environment before Python loads torch. Torch-free."""

from __future__ import annotations

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


def environment(device: str, lazy: bool = False) -> dict[str, str]:
    """Variables to set before a process for `device` imports anything; `auto` gets all of them.

    `lazy` is `training.use_lazy_mode`: the bridge's mode must agree with the trainer's.
    """
    parts = BEFORE_START.values() if device == "auto" else [BEFORE_START[device]]
    found = {**ALWAYS, **{name: value for part in parts for name, value in part.items()}}
    if lazy and "PT_HPU_LAZY_MODE" in found:
        found["PT_HPU_LAZY_MODE"] = "1"
    return found
