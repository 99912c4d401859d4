"""The device table: what `auto` selects, what is refused, and the CUDA entry's trainer on a CPU."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from helpers.training.train import Material

from trial.config import library_arguments
from trial.config.trial_config import parse
from trial.devices import device
from trial.devices.device import DEVICES, apply_environment, select_device
from trial.preload import finish_imports
from trial.store.folders import TrialFolder
from trial.train import train
from trial.training.arguments import training_keywords
from trial.training.process_cache import ProcessCache


def test_auto_selects_the_first_device_of_the_machine(monkeypatch):
    present = {"hpu": False, "cuda": False, "cpu": True}
    for name in DEVICES:
        entry = replace(DEVICES[name], available=lambda name=name: present[name])
        monkeypatch.setitem(DEVICES, name, entry)
    assert select_device("auto").name == "cpu"
    present["cuda"] = True
    assert select_device("auto").name == "cuda"
    present["hpu"] = True
    assert select_device("auto").name == "hpu"
    present["hpu"] = False
    with pytest.raises(ValueError, match="this machine has no hpu"):
        select_device("hpu")
    with pytest.raises(ValueError, match="hpu, cuda, cpu, got 'gaudi'"):
        select_device("gaudi")


@pytest.mark.parametrize(
    ("training", "lazy"),
    [({}, "0"), ({"use_lazy_mode": False}, "0"), ({"use_lazy_mode": True}, "1")],
)
def test_lazy_mode_agrees_in_environment_and_arguments(training, lazy):
    config = parse({"training": training})
    assert DEVICES["hpu"].environment(config)["PT_HPU_LAZY_MODE"] == lazy
    assert DEVICES["hpu"].arguments(config)["use_lazy_mode"] == (lazy == "1")


def test_a_variable_with_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    with pytest.raises(ValueError, match=r"PT_HPU_LAZY_MODE is '1'.*needs '0'"):
        apply_environment(DEVICES["hpu"].environment(parse({})))
    monkeypatch.delenv("PT_HPU_LAZY_MODE")
    apply_environment({"PT_HPU_LAZY_MODE": "0"})
    assert os.environ["PT_HPU_LAZY_MODE"] == "0"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_one_configuration_serves_every_device(name, tmp_path, caplog):
    """Arguments of a Gaudi alone are left out elsewhere, with a warning that names them."""
    config = parse({"training": {"use_lazy_mode": True, "pipelining_fwd_bwd": True, "seed": 3}})
    keywords = training_keywords(config, DEVICES[name], TrialFolder(tmp_path))
    assert keywords["seed"] == 3
    assert "pipelining_fwd_bwd" not in keywords
    assert not keywords.get("use_lazy_mode")
    assert f"no effect on {name}: pipelining_fwd_bwd, use_lazy_mode" in caplog.text
    known = set(library_arguments.training_arguments())
    assert set(keywords) <= known
    if name == "cuda":
        assert not set(keywords) & library_arguments.gaudi_only_arguments()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("devices"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the real thing: make test-cuda")
@pytest.mark.parametrize("stage", [None, 1, 3])
def test_transformers_trainer_learns_as_gaudi_trainer(material, monkeypatch, stage):
    """The CUDA entry on a CPU: the trainer, its arguments, and an empty parameter group."""
    config = material.config(zero_stage=stage, training={"gradient_accumulation_steps": 2})
    expected, _ = material.train(config)
    cuda = DEVICES["cuda"]
    stand_in = replace(
        cuda,
        available=lambda: True,
        label=lambda: "stand-in",
        arguments=lambda config: {**cuda.arguments(config), "use_cpu": True},
        ignored_arguments=lambda: cuda.ignored_arguments(),
        environment=DEVICES["cpu"].environment,
        reset_peak=lambda: None,
        read_peak=lambda: 1,
        synchronise=lambda: None,
    )
    monkeypatch.setitem(device.DEVICES, "cuda", stand_in)
    folder = material.folder(config.model_copy(update={"device": "cuda"}))
    found = train(folder, None, ProcessCache(finish_imports))
    assert found.state == "complete", found.cause
    assert found.device == "stand-in"
    assert [row.eval_loss for row in folder.read_evaluations()] == pytest.approx(
        [row.eval_loss for row in expected.read_evaluations()], abs=1e-4
    )
    assert issubclass(stand_in.trainer_class(), transformers.Trainer)
    assert "habana" not in stand_in.trainer_class().__module__


def test_the_device_table_loads_no_torch():
    code = "import sys, trial.devices, trial.train; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_worker_imports_no_framework_that_it_does_not_use():
    """They are installed, and their imports would take a second of every start."""
    code = (
        "import sys; from trial.preload import preload; preload('cpu'); import transformers\n"
        "names = 'datasets', 'diffusers', 'optuna', 'ray', 'scipy', 'sklearn', 'tensorflow'\n"
        "print([name for name in names if name in sys.modules], transformers.Trainer.__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == "[] Trainer"


@pytest.mark.parametrize(("optim", "fused"), [("adamw_torch", True), ("sgd", False)])
def test_on_hpu_another_optimizer_than_adamw_is_not_replaced_by_habanas(optim, fused):
    config = parse({"training": {"optim": optim}})
    found = DEVICES["hpu"].trainer_arguments(config)["gaudi_config"]
    assert found.use_fused_adam is fused
