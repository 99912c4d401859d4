"""The door to optimum-habana: the real classes, little else loaded, mends only off the device."""

import json
import subprocess
import sys

import pytest

from trial import gaudi

IMPORT = """
import json, subprocess, sys
started = []
subprocess.Popen.__init__ = lambda self, *a, **k: started.append(a)
from trial import gaudi
trainer = gaudi.trainer_class()
gaudi.arguments_class()
gaudi.gaudi_config({"use_fused_adam": True})
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


def test_the_real_trainer_without_what_it_does_not_need(imported):
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
from trial import gaudi
assert gaudi.on_device()
gaudi.enter()
from optimum.habana.transformers import trainer
from optimum.habana.transformers.training_args import GaudiTrainingArguments
before = (trainer.get_hpu_memory_stats, trainer.deepspeed_init)
assert gaudi.trainer_class() is trainer.GaudiTrainer
assert gaudi.arguments_class() is GaudiTrainingArguments
assert (trainer.get_hpu_memory_stats, trainer.deepspeed_init) == before
model = types.SimpleNamespace(generation_config=types.SimpleNamespace())
gaudi.mend_model(model)
assert not vars(model.generation_config)
print("untouched")
"""


def test_nothing_is_mended_where_habanas_software_is():
    out = subprocess.run(
        [sys.executable, "-c", STAND_IN], capture_output=True, text=True, timeout=120
    )
    assert out.stdout.strip() == "untouched", out.stderr


@pytest.mark.parametrize("deepspeed", [None, {"zero_optimization": {"stage": 2}}])
def test_arguments_off_the_device_are_those_of_a_cpu(tmp_path, monkeypatch, deepspeed):
    from trial import ranks

    if deepspeed is not None:
        deepspeed = {**deepspeed, "train_micro_batch_size_per_gpu": "auto"}
    with ranks.environment(deepspeed=deepspeed is not None):
        arguments = gaudi.arguments_class()(
            output_dir=str(tmp_path), deepspeed=deepspeed, **gaudi.off_device_arguments()
        )
        assert arguments.device.type == "cpu"
        assert not arguments.use_habana
        assert arguments.adam_epsilon == 1e-6
        ranks.put_away(None)


def test_flags_that_the_trainer_reads_are_there_and_off():
    import transformers
    from helpers_models import model_config

    model = transformers.AutoModelForCausalLM.from_config(model_config("llama", 16, 8))
    model.generation_config.use_flash_attention = True
    gaudi.mend_model(model)
    flags = {flag: getattr(model.generation_config, flag) for flag in gaudi.FLASH_FLAGS}
    assert flags == {**dict.fromkeys(gaudi.FLASH_FLAGS, False), "use_flash_attention": True}
