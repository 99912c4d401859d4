"""The sweep files that come with the project."""

import itertools
import re
import shlex

import pytest
import typer
import yaml

from sweep import cli
from sweep.loading import loader, sweep_files
from sweep.planning.lint import advice
from sweep.spec.dimension import Choices, Derived
from sweep.spec.grid import extreme_points, grid_points, variants
from sweep.spec.space import Space
from trial.config.sections import TRAINING_DEFAULTS

NAMES = [
    "learning_rate",
    "lora_alpha",
    "lora_dropout",
    "lora_joint",
    "lora_rank",
    "smoke",
    "unlearn_npo",
    "zero_stage",
]
SPECS = {name: loader.load(sweep_files.find(name)) for name in NAMES}
ADVISED = {"lora_joint": ["zero_stage moves eval_loss by noise"]}


def test_the_command_that_the_unlearning_file_names_is_one():
    """It prunes on the trade-off, which two objectives cannot."""
    text = sweep_files.find("unlearn_npo").read_text()
    said = re.search(r"(gaudi-sweep run .*\\\n.*)\n", text)[1]
    words = shlex.split(said.replace("\\\n#", " "))
    options = {word for word in words if word.startswith("--")}
    run = typer.main.get_command(cli.app).commands["run"]
    assert options <= {name for option in run.params for name in option.opts}
    overrides = [after for word, after in itertools.pairwise(words) if word == "--set"]
    spec = loader.load(sweep_files.find(words[2]), overrides)
    assert [(goal.metric, goal.direction) for goal in spec.objectives] == [
        ("trade_off", "maximize")
    ]
    assert (spec.sampler.name, spec.pruner.name) == ("tpe", "median")


def test_every_shipped_file_is_listed_here():
    assert [name for name in sweep_files.sweep_names() if "/" not in name] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_says_its_question_first(name):
    first = sweep_files.find(name).read_text().splitlines()[0]
    assert first.startswith("# ")
    assert "?" in first
    assert SPECS[name].question.endswith("?")
    assert SPECS[name].name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_draws_no_advice_but_the_known(name):
    said = advice(SPECS[name])
    wanted = ADVISED.get(name, [])
    assert len(said) == len(wanted)
    assert all(want in line for want, line in zip(wanted, said, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_needs_no_network_and_is_small(name):
    config = next(variants(Space.of(SPECS[name]), ["model", "data"]))
    base = SPECS[name].base
    assert base["model"]["name_or_path"].startswith("builtin:")
    assert base["data"]["path"].startswith("builtin:")
    assert "model.name_or_path" not in config
    assert base["training"]["max_steps"] <= 200
    rows = base["data"].get("max_train_samples", 2000)
    used = base["training"]["per_device_train_batch_size"] * base["training"]["max_steps"]
    assert used < rows, "DeepSpeed pads no batch: stages are compared within one epoch"


def test_the_files_share_one_base():
    bases = [SPECS[name].base for name in NAMES if name not in ("smoke", "unlearn_npo")]
    assert all(base == bases[0] for base in bases)


def test_lora_rank_gives_every_rank_its_own_rate_at_one_scale():
    spec = SPECS["lora_rank"]
    space = Space.of(spec)
    assert isinstance(spec.space["lora.r"][0], Choices)
    assert isinstance(spec.space["lora.lora_alpha"][0], Derived)
    assert spec.varies("training.learning_rate")
    scales = {space.configure(params).lora.scale for params in extreme_points(space)}
    ranks = {space.configure(params).lora.r for params in extreme_points(space)}
    assert scales == {2.0}
    assert len(ranks) >= 4
    assert spec.stop.trials
    assert 16 <= spec.stop.trials <= 20


def test_lora_joint_searches_all_five():
    assert {"lora.r", "lora.lora_alpha", "lora.lora_dropout", "training.learning_rate",
            "zero_stage"} <= SPECS["lora_joint"].space.keys()  # fmt: skip


def test_zero_stage_is_a_repeated_grid_on_time_and_memory():
    spec = SPECS["zero_stage"]
    grid = [Space.of(spec).configure(params) for params in grid_points(Space.of(spec))]
    stages = [config.zero_stage for config in grid]
    seeds = {config.training["seed"] for config in grid}
    assert {stage: stages.count(stage) for stage in stages} == dict.fromkeys(
        (None, 0, 1, 2, 3), len(seeds)
    )
    assert len(seeds) >= 2
    assert [goal.metric for goal in spec.objectives] == ["seconds_per_step", "peak_memory_bytes"]
    assert spec.pruner.name == "none"


def test_smoke_is_four_tiny_trials():
    grid = grid_points(Space.of(SPECS["smoke"]))
    steps = SPECS["smoke"].base["training"]["max_steps"]
    assert len(grid) == 4
    assert steps * len(grid) <= 100


def test_every_evaluation_step_is_reached_before_the_end():
    for name in NAMES:
        training = {**TRAINING_DEFAULTS, **SPECS[name].base["training"]}
        assert training["max_steps"] % training["eval_steps"] == 0, name
        assert training["max_steps"] / training["eval_steps"] >= 3, name


def test_numbers_are_written_so_that_any_yaml_reader_sees_numbers():
    """PyYAML reads `1e-4` as a text; our loader does not, but other tools read these files too."""
    for name in NAMES:
        text = sweep_files.find(name).read_text()
        assert not re.search(r"[ \[{,]\d+e-?\d+", text), name
        assert isinstance(yaml.safe_load(text)["base"]["training"]["learning_rate"], float)
