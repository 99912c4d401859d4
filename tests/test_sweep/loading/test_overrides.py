"""Overrides (`--set key=value`): what they set, and which are refused."""

import pytest
from helpers.sweeps.sweep_files import PLAIN, RATED, refused, write

from sweep.loading import loader

OVERRIDES = [
    # --set -> where in the content, what stands there
    ("training.max_steps=50", "base|training|max_steps", 50),
    ("base.training.max_steps=50", "base|training|max_steps", 50),
    ("training.weight_decay=1e-2", "base|training|weight_decay", 0.01),
    ("device=cpu", "base|device", "cpu"),
    ("lora.target_modules=[q_proj, v_proj]", "base|lora|target_modules", ["q_proj", "v_proj"]),
    ("lora={bias: all}", "base|lora", {"bias": "all"}),
    ("training={seed: 3}", "base|training|seed", 3),
    ("gaudi_config.use_fused_adam=false", "base|gaudi_config|use_fused_adam", False),
    ("stop.trials=4", "stop|trials", 4),
    ("stop.hours=0.5", "stop|hours", 0.5),
    ("sampler.name=random", "sampler|name", "random"),
    ("sampler=qmc", "sampler|name", "qmc"),
    ("sampler.n_startup_trials=3", "sampler|options|n_startup_trials", 3),
    ("pruner=none", "pruner|name", "none"),
    ("name=other", "name", "other"),
    ("question=why?", "question", "why?"),
    ("resources.concurrency=2", "resources|concurrency", 2),
    ("objective.metric=seconds", "objectives|0|metric", "seconds"),
    ("space.lora.r=[2, 3]", "space|lora.r|0|choices", [2, 3]),
    ("space.lora.r=16", "space|lora.r|0|value", 16),
    ("space={lora.r: [1, 2]}", "space|lora.r|0|choices", [1, 2]),
    ("space={lora: {r: [1, 2]}}", "space|lora.r|0|choices", [1, 2]),
    ("space.lora={r: [1, 2]}", "space|lora.r|0|choices", [1, 2]),
    (
        "training.lr_scheduler_kwargs.num_cycles=2",
        "base|training|lr_scheduler_kwargs",
        {"num_cycles": 2},
    ),
    ("space.training.learning_rate.high=0.5", "space|training.learning_rate|0|high", 0.5),
    ("space.lora.lora_dropout={low: 0.0, high: 0.1}", "space|lora.lora_dropout|0|high", 0.1),
    ("variables.x=[1, 2]", "variables|x|0|choices", [1, 2]),
    ("enqueue=[{lora.r: 4}]", "enqueue", [{"lora.r": 4}]),
    ("zero_stage=", "base|zero_stage", None),
]


@pytest.mark.parametrize(("override", "key", "value"), OVERRIDES)
def test_overrides(tmp_path, override, key, value):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n")
    got = loader.load(path, [override]).content()
    for part in key.split("|"):
        got = got[int(part)] if isinstance(got, list) else got[part]
    assert got == value
    assert type(got) is type(value)


def test_the_last_override_wins_and_the_file_is_left_alone(tmp_path):
    path = write(tmp_path, PLAIN)
    spec = loader.load(path, ["training.max_steps=5", "training.max_steps=7", "stop.trials=2"])
    assert spec.base["training"]["max_steps"] == 7
    assert spec.stop.trials == 2
    assert path.read_text() == PLAIN


BAD_OVERRIDES = [
    ("trainng.max_steps=5", "trainng.max_steps: unknown key", "did you mean training.max_steps?"),
    ("training.max_stps=5", "training.max_stps: unknown key", "did you mean training.max_steps?"),
    ("trials=5", "trials: unknown key", "did you mean stop.trials?"),
    ("stop.trals=5", "stop.trals: unknown key", "did you mean trials?"),
    ("sampler.sed=1", "sampler.sed: unknown keyword of TPESampler", ""),
    ("sampler=tpee", "sampler.name: unknown sampler", "did you mean tpe?"),
    ("training.max_steps=many", "base.training.max_steps: expected", "got 'many'"),
    ("lora.r=16", "lora.r: is searched by this sweep; say `--set space.lora.r=...`", ""),
    ("lora={bias: all, r: 3}", "lora.r: is searched by this sweep", ""),
    ("lora=8", "unknown key", ""),
    ("space.lora.rr=[1, 2]", "space.lora.rr: unknown key", "did you mean lora.r?"),
    ("space.lora.r=[1, -2]", "space.lora.r: input should be greater than", "got -2"),
    ("space.lora.r.low=3", "space.lora.r.low: lora.r is not a mapping here", ""),
    ("space.training.learning_rate.low=0", "must be > 0 when log is true", "got 0"),
    ("enqueue=[{lora.r: 5}]", "enqueue.0.lora.r: 5 is not one of", ""),
    ("max_steps", "an override is `key=value`", ""),
    ("=5", "an override is `key=value`", ""),
    ("stop.trials=[1", "stop.trials: is not valid YAML", ""),
    ("stop.trials.x=1", "stop.trials.x: trials is not a mapping", ""),
    ("base=nowhere.yaml", "base: names a file", "got 'nowhere.yaml'"),
]


@pytest.mark.parametrize(("override", "start", "end"), BAD_OVERRIDES)
def test_a_wrong_override_is_named_as_typed(tmp_path, override, start, end):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n")
    got = refused(path, [override])
    assert len(got) == 1
    assert got[0].startswith(f"--set {override} ")
    assert start in got[0]
    assert end in got[0]


def test_file_and_overrides_report_together(tmp_path):
    path = write(tmp_path, "space: {lora.rank: [4]}\nstop: {trials: 4}\n")
    got = refused(path, ["training.max_stps=4"])
    assert [line.partition(" ")[0] for line in got] == ["--set", "FILE:1"]


def test_no_deepspeed_drops_the_settings_of_the_file(tmp_path):
    text = f"base:\n  zero_stage: 2\n  deepspeed: {{offload_optimizer: cpu}}\n{PLAIN}"
    path = write(tmp_path, text)
    spec = loader.load(path, ["zero_stage=null"])
    assert spec.base["zero_stage"] is None
    assert not spec.base.get("deepspeed")
    assert loader.load(path).base["deepspeed"]["offload_optimizer"] == "cpu"
