"""Keys of a configuration act on the training, whatever files and defaults say beside them."""

from __future__ import annotations

import json

import pytest
from helpers.training.packed import StopsAfter
from helpers.training.train import Material

from trial.config.trial_config import problems_of
from trial.train import train


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("effects"))


def losses(material: Material, **sections) -> list[float]:
    """Eval losses of a new trial."""
    folder, result = material.train(material.config(**sections))
    assert result.state == "complete", result.cause
    return [row.eval_loss for row in folder.read_evaluations()]


TEN = {"max_steps": 10, "eval_steps": 5}


def test_a_schedule_acts_beside_the_one_of_a_deepspeed_file(material, tmp_path):
    """The file's own schedule and rate would give all of these one loss."""
    file = tmp_path / "ds_config.json"
    warmup = {"warmup_min_lr": 0.0, "warmup_max_lr": 1e-4, "warmup_num_steps": 5}
    adamw = {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}}
    content = {"scheduler": {"type": "WarmupLR", "params": warmup}, "optimizer": adamw}
    file.write_text(json.dumps(content))
    found = {
        schedule: [
            losses(
                material,
                zero_stage=1,
                deepspeed=section,
                training={**TEN, "lr_scheduler_type": schedule},
            )
            for section in ({"config": str(file)}, {})
        ]
        for schedule in ("constant", "linear")
    }
    for with_file, without in found.values():
        assert with_file == pytest.approx(without, abs=1e-5)
    assert found["constant"][0] != pytest.approx(found["linear"][0], abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deepspeed_computes_in_bfloat16_where_base_or_arguments_say_so(material, dtype):
    """transformers refuses a bf16 section that its own argument does not repeat."""
    plain = losses(material, training=TEN)
    found = losses(material, model={"dtype": dtype}, zero_stage=1, training=TEN)
    assert found == pytest.approx(plain, abs=1e-4 if dtype == "float32" else 0.05)
    if dtype == "bfloat16":
        assert found != pytest.approx(plain, abs=1e-6)


def test_save_only_model_is_refused_and_an_older_trial_with_it_resumes_exactly(material):
    (problem,) = problems_of({"training": {"save_only_model": True}})
    assert problem.key == "training.save_only_model"
    assert problems_of({"training": {"save_only_model": False}}) == []
    config = material.config()
    older = config.model_copy(update={"training": {**config.training, "save_only_model": True}})
    whole, _ = material.train(older)
    folder = material.folder(older)
    assert folder.read_config() == older
    assert train(folder, StopsAfter("interrupt", 10), material.process_cache()) is None
    train(folder, None, material.process_cache())
    both = [[row.eval_loss for row in one.read_evaluations()] for one in (whole, folder)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accelerator_config", {"split_batches": True}),
        ("bf16_full_eval", True),
        ("fsdp", "full_shard"),
        ("length_column_name", "tokens"),
        ("per_gpu_train_batch_size", 4),
        ("optim_args", "beta3=0.9"),
    ],
)
def test_what_would_not_act_is_refused_by_name(name, value):
    (problem,) = problems_of({"training": {name: value}})
    assert problem.key == f"training.{name}"
