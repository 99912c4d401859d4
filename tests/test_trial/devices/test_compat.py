"""Private names of libraries: each exists in the installed version, and the patches take effect."""

import importlib.util
import os
import re
import types
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.training.models import make_model
from transformers import AutoModelForCausalLM
from transformers.utils import import_utils

from trial.devices import compat
from trial.devices.compat import PRIVATE_NAMES, PrivateName
from trial.devices.device import DEVICES
from trial.preload import preload
from trial.training.trainer import trainer_class


@pytest.fixture(scope="module", autouse=True)
def imported_as_in_a_worker() -> None:
    """Without what `trial.preload` leaves out: a plain import takes all optional packages along."""
    preload("cpu")


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=lambda name: f"{name.module}.{name.name}")
def test_the_installed_version_has_every_private_name(name):
    DEVICES["cpu"].trainer_class()  # Makes optimum.habana importable.
    assert compat.missing_names([name]) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.trainer", "_no_such_function"),
        ("transformers", "Trainer._no_such_method"),
        ("transformers.no_such_module", "anything"),
    ],
)
def test_a_missing_name_is_reported_with_the_version_and_its_use(module, name, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda distribution: "9.9")
    (line,) = compat.missing_names([PrivateName("transformers", module, name, "preload: why")])
    assert line == f"transformers 9.9 has no {module}.{name} (preload: why)"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_trainer_uses_the_patched_functions(device):
    modules = {base.__module__ for base in trainer_class(DEVICES[device]).__mro__}
    patched = [
        getattr(module, name)
        for module in (__import__(path, fromlist=["_"]) for path in modules)
        for name in ("skip_first_batches", "_is_peft_model")
        if hasattr(module, name)
    ]
    assert len(patched) >= 2
    assert {function.__module__ for function in patched} == {"trial.devices.compat"}


def test_skipping_batches_keeps_the_epoch():
    loader = types.SimpleNamespace(iteration=3)
    skip = compat.keeping_epoch(lambda loader, count: types.SimpleNamespace(iteration=0))
    assert skip(loader, 2).iteration == 3
    assert not hasattr(
        compat.keeping_epoch(lambda loader, count: object())(object(), 2), "iteration"
    )


def test_accelerates_variables_are_removed_and_no_others(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("OTHER", "1")
    compat.clear_accelerate_environment()
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
    assert os.environ["OTHER"] == "1"


def test_optional_packages_count_as_missing_and_a_folder_is_scanned_once(monkeypatch):
    scanned = []
    monkeypatch.setattr(import_utils, "create_import_structure_from_path", scanned.append)
    monkeypatch.setattr(import_utils, "_scipy_available", True)
    compat.skip_optional_imports(["scipy"])
    assert not import_utils.is_scipy_available()
    import_utils.create_import_structure_from_path("/models/__init__.py")
    import_utils.create_import_structure_from_path("/models/llama/modeling_llama.py")
    assert [str(path) for path in scanned] == ["/models", "/models/llama/modeling_llama.py"]


@pytest.mark.parametrize(("devices", "used"), [(0, 0), (1, 1), (4, 1)])
def test_one_gpu_of_several_is_used(devices, used):
    class Arguments:
        _n_gpu = devices

        @property
        def n_gpu(self):
            return self._n_gpu

    arguments = Arguments()
    compat.use_one_gpu(arguments)
    assert arguments.n_gpu == used


def test_the_attention_of_a_model_is_read_and_set_by_its_name(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path))
    assert compat.attention_name(model) == "sdpa"
    assert compat.looks_attention_up(model)
    compat.set_attention_name(model, "eager")
    assert model.config._attn_implementation == compat.attention_name(model) == "eager"


@pytest.mark.parametrize("name", ["ds_id", "ds_numel"])
def test_deepspeed_marks_the_parameters_that_it_partitions(name):
    package = Path(importlib.util.find_spec("deepspeed").origin).parent
    source = (package / "runtime/zero/partition_parameters.py").read_text(encoding="utf-8")
    assert f"param.{name} = " in source, f"deepspeed {version('deepspeed')} sets no {name}"


def test_a_parameter_is_measured_whole_where_deepspeed_has_partitioned_it():
    plain, part = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(0))
    part.ds_id, part.ds_numel = 0, 6
    assert [compat.is_zero_parameter(p) for p in (plain, part)] == [False, True]
    assert [compat.whole_size(p) for p in (plain, part)] == [3, 6]


def test_no_other_module_names_them():
    names = "_attn_implementation|_supports_attention_backend|ds_id|ds_numel|_n_gpu|_reset_state"
    private = re.compile(rf"\b(?:{names})\b|_checkpoint_without_reentrant_generator")
    users = {p.name for p in (ROOT / "trial").rglob("*.py") if private.search(p.read_text())}
    assert users == {"compat.py", "compat_torch.py"}
