"""`device: hpu` on the STAND-IN for Gaudi: optimum-habana's own classes, computed on the CPU.

What is compared: eval losses with those of `device: cpu`, where transformers' Llama trains. Where a
Gaudi would compute otherwise nothing is learnt here about it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import standin
from helpers.command import invoke
from helpers.standin import COUNTS, STANDIN, SWITCH
from helpers.training.models import question
from helpers.training.seed import write_config, write_model, write_rows
from helpers.training.train import Material
from pandas.testing import assert_frame_equal

from results import trials_table
from sweep import run
from sweep.driver.executor import Event, Finished, Job
from trial import single_run
from trial.store.folders import StudyFolder, TrialFolder
from trial.train import train

CLOSE = 2e-6
"""Two implementations of Llama in float32 add up in another order: 4e-8 was seen."""
CLOSE_IN_BF16 = 5e-5
"""bfloat16 has three digits, in which that order shows: 2e-5 was seen."""
TRAINING = {"max_steps": 6, "eval_steps": 2, "learning_rate": 5e-3, "logging_steps": 3}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("standin"))


@pytest.fixture(scope="module")
def gaudi():
    with standin.session() as run:
        yield run


def losses_of(folder: TrialFolder) -> list[float]:
    return [row.eval_loss for row in folder.read_evaluations()]


@pytest.fixture(scope="module")
def on_cpu(material):
    """Eval losses of one process on the CPU, each configuration trained once."""
    known: dict[str, list[float]] = {}

    def losses(**sections) -> list[float]:
        config = material.config(**sections)
        if config.fingerprint() not in known:
            known[config.fingerprint()] = losses_of(material.train(config)[0])
        return known[config.fingerprint()]

    return losses


def counts_of(folder: TrialFolder) -> dict[str, int]:
    return json.loads(Path(folder.path, COUNTS).read_text())


LAZY = {"use_lazy_mode": True}
COMPILED = {"torch_compile": True, "torch_compile_backend": "hpu_backend"}
ONLY_HERE = {*LAZY, *COMPILED}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("sections", "training", "used", "close"),
    [
        ({}, {}, {"steps", "clips"}, CLOSE),
        # Both kinds of checkpointing once failed, on the device alone.
        ({}, {**LAZY, **CHECKPOINTED}, {"steps", "clips", "marks"}, CLOSE),
        ({}, COMPILED, {"steps", "clips", "compiled"}, CLOSE),
        ({"model": {"attn_implementation": "gaudi_fused_sdpa"}}, {},
         {"steps", "clips", "attention"}, CLOSE),
        ({"gaudi_config": {}}, CHECKPOINTED, set(), CLOSE),
        ({"gaudi_config": "Habana/llama"}, {"bf16": True}, {"steps", "clips"}, CLOSE_IN_BF16),
        # DeepSpeed clips by itself.
        ({"zero_stage": 1}, CHECKPOINTED, {"steps"}, CLOSE),
        ({"lora": {"r": 0}}, {}, {"steps", "clips"}, CLOSE),
    ],
    ids=["eager", "lazy-checkpointing", "compile", "fused-attention", "checkpointing", "bf16",
         "zero-1-checkpointing", "whole-model"],
)  # fmt: skip
def test_losses_are_those_of_the_cpu(material, gaudi, on_cpu, sections, training, used, close):
    asked = {**sections, "training": {**TRAINING, **training}}
    folder = material.folder(material.config(**asked, device="hpu"))
    lazy = "1" if "use_lazy_mode" in training else "0"
    assert gaudi.train(folder, PT_HPU_LAZY_MODE=lazy) == [0], folder.log.read_text()[-2000:]
    result = folder.read_result()
    assert result.device == "hpu stand-in"
    everywhere = {name: value for name, value in training.items() if name not in ONLY_HERE}
    plain = {**asked, "training": {**TRAINING, **everywhere}, "zero_stage": None}
    expected = on_cpu(**plain)
    assert losses_of(folder) == pytest.approx(expected, rel=close)
    moved = max(expected) - min(expected)
    assert moved > 20 * close * expected[0], "too little was learnt to tell two trainings apart"
    assert {name for name, count in counts_of(folder).items() if count} == used


@pytest.mark.parametrize("stage", [None, 2, 3])
def test_two_ranks_over_hccl_are_one_with_the_whole_batch(material, gaudi, on_cpu, stage):
    """`hccl` is registered by the stand-in, with gloo underneath. No dropout: ranks draw apart."""
    same = {"lora": {"lora_dropout": 0.0}, "training": {**TRAINING, "max_steps": 4}}
    folder = material.folder(material.config(**same, zero_stage=stage, device="hpu"))
    assert gaudi.train(folder, ranks=2) == [0, 0], folder.log.read_text()[-2000:]
    whole = {**same["training"], "per_device_train_batch_size": 16}
    expected = on_cpu(**{**same, "training": whole})
    assert losses_of(folder) == pytest.approx(expected, rel=CLOSE)
    result = folder.read_result()
    assert (result.devices, result.device) == (2, "hpu stand-in")


FORGETTING = [
    # Objective, ranks, ZeRO stage, batches of a step.
    ("kl", 1, None, 2),
    ("npo", 2, None, 1),
    ("dpo", 2, 3, 1),
]


@pytest.mark.parametrize(("objective", "ranks", "stage", "batches"), FORGETTING)
def test_objectives_train_as_on_the_cpu(material, gaudi, on_cpu, objective, ranks, stage, batches):
    """Rows of all ranks and batches of a step are counted as one: the whole batch is four rows."""
    forget = material.root / "forget.jsonl"
    rows = [{**question(200 + number), "other": f"not {number % 3}"} for number in range(12)]
    forget.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"forget_path": str(forget), "alternative_column": "other", "max_eval_samples": 8}
    same = {
        "objective": objective,
        "data": data,
        "lora": {"lora_dropout": 0.0},
        "evaluation": {"metrics": ["forget_loss"]},
        "keep": "last",
    }
    whole = {**TRAINING, "max_steps": 4, "per_device_train_batch_size": 4}
    parts = {
        **whole,
        "per_device_train_batch_size": 4 // ranks // batches,
        "gradient_accumulation_steps": batches,
    }
    folder = material.folder(
        material.config(**same, training=parts, zero_stage=stage, device="hpu")
    )
    assert gaudi.train(folder, ranks=ranks) == [0] * ranks, folder.log.read_text()[-2000:]
    expected = on_cpu(**same, training=whole)
    assert losses_of(folder) == pytest.approx(expected, rel=CLOSE)
    assert abs(expected[-1] - expected[0]) > 20 * CLOSE * expected[0]


def test_a_killed_trial_goes_on_exactly(material, gaudi):
    config = material.config(training=TRAINING, device="hpu")
    whole, killed = material.folder(config), material.folder(config)
    assert gaudi.train(whole) == [0]
    # Asked before loading, before the first step and after each: it dies after step 5.
    assert gaudi.train(killed, killed_at=2 + 5) == [-9]
    assert gaudi.train(killed) == [0]
    assert [row.resumed_from for row in killed.read_attempts()] == [0, 4]
    assert losses_of(killed) == losses_of(whole)
    weights = "adapter/adapter_model.safetensors"
    assert (killed.path / weights).read_bytes() == (whole.path / weights).read_bytes()


def test_the_seeds_files_train_on_both_devices(gaudi, tmp_path):
    """As they stand but for two paths: bf16, rows of 500 tokens, ten epochs, ZeRO 1."""
    model, rows = write_model(tmp_path / "model"), write_rows(tmp_path / "rows.csv", 9)
    file = write_config(tmp_path / "config", model, rows)
    here, there = tmp_path / "cpu", tmp_path / "hpu"
    assert train(single_run.open_folder(single_run.read(file, ["device=cpu"], run_dir=here)))
    words = [file, "--use_deepspeed", "--run-dir", there, "--set", "device=hpu"]
    assert gaudi.command(*words) == 0, (there / "train.log").read_text()[-2000:]
    found, expected = (TrialFolder(folder).read_result() for folder in (there, here))
    assert (found.device, expected.device) == ("hpu stand-in", "cpu")
    assert found.max_steps == expected.max_steps == 20
    assert (found.tokens, found.data_hash) == (expected.tokens, expected.data_hash)
    assert found.eval_loss == pytest.approx(expected.eval_loss, rel=CLOSE_IN_BF16)


class InProcess:
    """An executor that trains each job here and now."""

    def __init__(self, process_cache) -> None:
        self.process_cache = process_cache
        self.happened: list[Event] = []
        self.fork_server = None

    def start(self) -> None:
        pass

    def capacity(self) -> int:
        return 1

    def describe(self) -> str:
        return "this process"

    def submit(self, job: Job) -> None:
        for placed in job.trials:
            result = train(TrialFolder(placed.folder), None, self.process_cache())
            assert result is not None
            self.happened.append(Finished(placed.number, result))

    def events(self, timeout: float) -> list[Event]:
        found, self.happened = self.happened, []
        return found

    def stop(self, number: int, reason: str) -> None:
        raise AssertionError("nothing is pruned here")

    def close(self, *, wait: bool = True) -> None:
        pass


SAME = ["number", "state", "best_step", "steps", "max_steps", "tokens", "trainable_parameters",
        "total_parameters", "data_hash", "model_hash", "lora.r", "zero_stage"]  # fmt: skip


def test_one_sweep_file_on_both_devices_gives_equal_tables(material, monkeypatch, tmp_path):
    """Under the stand-in: the command, a Ray that finds two HPUs, its worker on one of them."""
    config = material.config(training=TRAINING).model_dump(exclude_defaults=True)
    content = {
        "base": {name: value for name, value in config.items() if name != "device"},
        "space": {"lora.r": [2, 8], "zero_stage": [None, 1]},
        "sampler": "grid",
        "resources": {"concurrency": 1},
    }
    source = tmp_path / "both.yaml"
    source.write_text(yaml.safe_dump(content))
    words = ["run", str(source), "--set", "base.keep=best", "--runs"]
    there = subprocess.run(
        [sys.executable, "-m", "sweep", *words, str(tmp_path / "hpu"), "--device", "hpu"],
        env=standin.environment(GAUDI_SWEEP_TEST_HPU_COUNT="2"),
        capture_output=True,
        text=True,
    )
    assert there.returncode == 0, there.stdout + there.stderr
    monkeypatch.setattr(run, "make_executor", lambda *_: InProcess(material.process_cache))
    here = invoke(*words, tmp_path / "cpu", "--device", "cpu")
    assert here.exit_code == 0, here.output
    tables = {d: trials_table(StudyFolder(tmp_path / d / "both")) for d in ("cpu", "hpu")}
    assert list(tables["hpu"].columns) == list(tables["cpu"].columns)
    assert_frame_equal(tables["hpu"][SAME], tables["cpu"][SAME])
    assert tables["hpu"]["value"].tolist() == pytest.approx(tables["cpu"]["value"], rel=CLOSE)
    assert set(tables["hpu"]["device"]) == {"hpu stand-in"}
    assert len(tables["hpu"]) == 4


LOOK = "import importlib.util; print(importlib.util.find_spec('habana_frameworks') is not None)"


def outside(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in (SWITCH, "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**own, **environment},
        cwd=STANDIN.parent,
        capture_output=True,
        text=True,
    )


def test_nobody_comes_upon_the_stand_in_by_accident(tmp_path):
    assert outside(LOOK).stdout == "False\n"
    assert outside(LOOK, **{SWITCH: "1"}).stdout == "False\n"
    # On the path without the variable, copied elsewhere, or beside the real software: refused.
    elsewhere = tmp_path / "site-packages" / "standin"
    real = tmp_path / "real" / "habana_frameworks"
    for folder in (elsewhere, real):
        folder.mkdir(parents=True)
    (elsewhere / "habana_frameworks").symlink_to(STANDIN / "habana_frameworks")
    (real / "__init__.py").touch()
    copied = (elsewhere / "habana_frameworks" / "__init__.py").read_text()
    (elsewhere / "habana_frameworks").unlink()
    (elsewhere / "habana_frameworks").mkdir()
    (elsewhere / "habana_frameworks" / "__init__.py").write_text(copied)
    beside = os.pathsep.join(map(str, (STANDIN, real.parent)))
    for path, switch, why in (
        (str(STANDIN), "", f"{SWITCH} is not 1"),
        (str(elsewhere), "1", "not among the tests of a checkout"),
        (beside, "1", "the real software is here"),
    ):
        done = outside("import habana_frameworks", PYTHONPATH=path, **{SWITCH: switch})
        assert done.returncode == 1
        assert why in done.stderr


def test_no_installed_package_holds_the_stand_in():
    import tomllib

    project = tomllib.loads((STANDIN.parents[1] / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    assert not [
        name for name in packages if name.split(".")[0] not in ("sweep", "trial", "results")
    ]


def test_what_other_tests_set_does_not_reach_it(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert "DS_ACCELERATOR" not in standin.environment()
