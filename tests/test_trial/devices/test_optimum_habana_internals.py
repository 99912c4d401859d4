"""Private parts of optimum-habana, transformers and torch that trial/devices relies on.

Each is looked for by name: after an upgrade a failure says what is gone, and who needs it.
"""

from __future__ import annotations

import importlib
import inspect
from importlib import metadata

import pytest

from trial.devices import optimum_habana

NEEDED = [
    # module, attribute, function of trial/devices/optimum_habana.py that needs it
    (
        "optimum.habana.transformers.trainer",
        "_get_input_update_settings",
        "evaluation_inputs",
    ),
    ("optimum.habana.transformers.trainer", "get_hpu_memory_stats", "_patch_trainer_module"),
    ("optimum.habana.transformers.trainer", "deepspeed_init", "_patch_trainer_module"),
    ("transformers.integrations.deepspeed", "deepspeed_init", "_patch_trainer_module"),
    ("transformers.modeling_utils", "checkpoint", "_restore_checkpoint"),
    ("torch.utils.checkpoint", "checkpoint", "_restore_checkpoint"),
]

IN_SOURCE = [
    # module of optimum.habana.transformers, text in its source, who relies on it
    ("trainer", "self.use_cpu_amp = False", "restore_autocast"),
    ("trainer", "checkpoint = hpu_deepspeed_checkpointing", "repair_checkpointing"),
    ("trainer", "checkpoint = lazy_mode_checkpointing", "repair_lazy_checkpointing"),
    ("trainer", "get_hpu_memory_stats(self.args.device)", "_patch_trainer_module"),
    *(
        ("trainer", f"model.generation_config.{flag}", "add_missing_generation_flags")
        for flag in optimum_habana.FLASH_FLAGS
    ),
    ("training_args", "This version of DeepSpeed must be run on HPUs", "OffDeviceArguments"),
]


def installed(name: str) -> str:
    return f"{name} {metadata.version(name)}"


@pytest.mark.parametrize(("module", "attribute", "user"), NEEDED)
def test_a_private_name_is_still_there(module, attribute, user):
    optimum_habana.make_importable()
    package = "optimum-habana" if module.startswith("optimum") else module.partition(".")[0]
    assert hasattr(importlib.import_module(module), attribute), (
        f"{module}.{attribute} is gone from {installed(package)}; optimum_habana.{user} needs it"
    )


@pytest.mark.parametrize(("name", "text", "user"), IN_SOURCE)
def test_an_assumption_is_still_in_the_source(name, text, user):
    optimum_habana.make_importable()
    module = importlib.import_module(f"optimum.habana.transformers.{name}")
    assert text in inspect.getsource(module), (
        f"{name}.py of {installed('optimum-habana')} no longer holds {text!r}: "
        f"is optimum_habana.{user} still needed?"
    )


def test_input_settings_take_what_evaluation_inputs_gives():
    optimum_habana.make_importable()
    from optimum.habana.transformers.trainer import _get_input_update_settings

    names = list(inspect.signature(_get_input_update_settings).parameters)
    assert names == ["model", "lazy_mode"], installed("optimum-habana")
