"""optimum-habana: its real classes, little else loaded, patched only where there is no Gaudi."""

import json
import subprocess
import sys

import pytest

from trial.config import library_arguments
from trial.config.trial_config import TrialConfig, problems_of
from trial.devices import optimum_habana
from trial.model import hub
from trial.preflight.checks import check_trial

IMPORT = """
import json, subprocess, sys
started = []
subprocess.Popen.__init__ = lambda self, *a, **k: started.append(a)
from trial.devices import optimum_habana
trainer = optimum_habana.trainer_class()
optimum_habana.arguments_class()
optimum_habana.gaudi_config({"use_fused_adam": True})
import optimum.habana.transformers.trainer as module
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
    "started": len(started),
    "trainer": trainer.__module__,
    "statistics": module.get_hpu_memory_stats("cpu"),
}))
"""


@pytest.fixture(scope="module")
def imported():
    out = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(out.stdout.splitlines()[-1])


def test_the_real_trainer_loads_without_packages_it_does_not_need(imported):
    assert imported["trainer"] == "optimum.habana.transformers.trainer"
    assert not {"diffusers", "sentence_transformers", "optuna", "ray"} & set(imported["modules"])
    assert imported["started"] == 0
    assert imported["statistics"] == {}


STAND_IN = """
import sys, types
from importlib.machinery import ModuleSpec
fake = types.ModuleType("habana_frameworks")
fake.__spec__ = ModuleSpec("habana_frameworks", None, is_package=True)
fake.__path__ = []
sys.modules["habana_frameworks"] = fake
from trial.devices import optimum_habana
from trial.devices import detect
assert detect.has_gaudi_software()
optimum_habana.make_importable()
from optimum.habana.transformers import trainer
from optimum.habana.transformers.training_args import GaudiTrainingArguments
before = (trainer.get_hpu_memory_stats, trainer.deepspeed_init)
assert optimum_habana.trainer_class() is trainer.GaudiTrainer
assert optimum_habana.arguments_class() is GaudiTrainingArguments
assert (trainer.get_hpu_memory_stats, trainer.deepspeed_init) == before
model = types.SimpleNamespace(generation_config=types.SimpleNamespace())
optimum_habana.add_missing_generation_flags(model)
assert not vars(model.generation_config)
print("untouched")
"""


def test_nothing_is_patched_where_habanas_software_is_installed():
    out = subprocess.run(
        [sys.executable, "-c", STAND_IN], capture_output=True, text=True, timeout=120
    )
    assert out.stdout.strip() == "untouched", out.stderr


@pytest.mark.parametrize("deepspeed", [None, {"zero_optimization": {"stage": 2}}])
def test_arguments_off_the_device_are_those_of_a_cpu(tmp_path, monkeypatch, deepspeed):
    from trial.distributed import rank_env

    if deepspeed is not None:
        deepspeed = {**deepspeed, "train_micro_batch_size_per_gpu": "auto"}
    with rank_env.rank_variables(deepspeed=deepspeed is not None):
        arguments = optimum_habana.arguments_class()(
            output_dir=str(tmp_path), deepspeed=deepspeed, **optimum_habana.off_device_arguments()
        )
        assert arguments.device.type == "cpu"
        assert not arguments.use_habana
        assert arguments.adam_epsilon == 1e-6
        rank_env.tear_down(None)


def test_generation_flags_that_the_trainer_reads_are_added_as_false():
    import transformers
    from helpers.training.models import model_config

    model = transformers.AutoModelForCausalLM.from_config(model_config("llama", 16, 8))
    model.generation_config.use_flash_attention = True
    optimum_habana.add_missing_generation_flags(model)
    flags = {flag: getattr(model.generation_config, flag) for flag in optimum_habana.FLASH_FLAGS}
    assert flags == {
        **dict.fromkeys(optimum_habana.FLASH_FLAGS, False),
        "use_flash_attention": True,
    }


@pytest.mark.parametrize(
    ("given", "key", "near"),
    [
        ({"use_fused_adamm": True}, "gaudi_config.use_fused_adamm", "use_fused_adam"),
        ({"use_fused_adam": "yes"}, "gaudi_config.use_fused_adam", ""),
        ({"autocast_bf16_ops": "add"}, "gaudi_config.autocast_bf16_ops", ""),
        (3, "gaudi_config", ""),
        (None, "gaudi_config", ""),
    ],
)
def test_a_wrong_gaudi_config_is_refused(given, key, near):
    """GaudiConfig itself passes over a key that it does not know."""
    (problem,) = problems_of({"gaudi_config": given})
    assert (problem.key, problem.near) == (key, near)
    with pytest.raises(ValueError, match="gaudi_config"):
        TrialConfig(gaudi_config=given)


def test_the_keys_of_a_gaudi_config_are_those_of_the_class():
    assert set(library_arguments.gaudi_config_keys()) == set(vars(optimum_habana.gaudi_config({})))
    for known in optimum_habana.PUBLISHED_CONFIGS.values():
        assert problems_of({"gaudi_config": known}) == []


def test_a_gaudi_config_by_name_must_exist(tmp_path, monkeypatch):
    """Only a trial on HPU reads it; where the hub is out of reach, a plan can do without."""

    def keys(given, device="hpu"):
        found = check_trial(TrialConfig(gaudi_config=given, device=device), here=False)
        return [[problem.key for problem in part] for part in (found.problems, found.missing_here)]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert keys("Habana/llama") == [[], []]
    assert keys("Habana/gpt2") == [[], ["gaudi_config"]]
    assert keys("./no-such") == keys("") == [["gaudi_config"], []]
    assert keys(str(tmp_path)) == [["gaudi_config"], []]
    (tmp_path / "gaudi_config.json").write_text("{}")
    assert keys(str(tmp_path)) == [[], []]
    assert keys("./no-such", "cpu") == [[], []]
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: "")
    assert keys("Habana/gpt2") == [[], []]
