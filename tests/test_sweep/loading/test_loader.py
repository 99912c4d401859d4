"""Sweep files: what is read, what is refused and how, overrides, names, and fuzzing."""

import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from helpers.fuzz import examples
from helpers.paths import ROOT, TESTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.loading import loader, sweep_files
from sweep.spec.grid import extreme_points
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config import yaml_file
from trial.config.errors import ConfigError

BROKEN = sorted(TESTS.glob("broken/*.yaml"))
SHIPPED = sorted(sweep_files.SPACES.rglob("*.yaml"))
PLAIN = "space: {lora.r: [4, 8]}\nstop: {trials: 4}\n"


def refused(path: Path, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loader.load(path, overrides)
    return [str(problem).replace(str(path), "FILE", 1) for problem in caught.value.problems]


def says(line: str, expected: str) -> bool:
    """Whether a message is the expected one; ` ... ` stands for a list of known names."""
    start = 0
    for part in expected.split(" ... "):
        found = line.find(part.strip(), start)
        if found < 0 or (start == 0 and found > 0):
            return False
        start = found + len(part.strip())
    return start == len(line) or expected.endswith("...")


def write(tmp_path: Path, text: str, name: str = "sweep.yaml") -> Path:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Broken files


def test_there_are_three_dozen_broken_files():
    assert len(BROKEN) >= 36


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_file_is_refused_with_every_mistake_and_its_line(path):
    text = path.read_bytes().decode("latin-1")
    header = [line for line in text.splitlines() if line.startswith("# expect: ")]
    expected = [f"FILE{line.removeprefix('# expect: ')}" for line in header]
    got = refused(path)
    assert header
    assert len(got) == len(expected), got
    for line, want in zip(got, expected, strict=True):
        assert says(line, want), f"got:  {line}\nwant: {want}"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.yaml", b"", "got an empty file"),
        ("comment.yaml", b"# nothing\n", "got an empty file"),
        ("null.yaml", b"\x00", "a character that YAML does not allow: 0x0"),
        ("utf16.yaml", "space: {}".encode("utf-16"), "must be UTF-8 text"),
        ("big.yaml", b"a: " + b"x" * yaml_file.MAX_BYTES, "must not exceed"),
        ("deep.yaml", b"[" * 5000, "nested too deeply"),
        ("deep_map.yaml", b"a: " + b"{b: " * 50 + b"1" + b"}" * 50, "nested deeper than 40"),
        ("digits.yaml", b"stop: {trials: " + b"9" * 5000 + b"}", "below 2**63"),
        ("my sweep.yaml", PLAIN.encode(), "name: is needed"),
    ],
)
def test_files_that_are_no_text_to_speak_of(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    got = refused(path)
    assert len(got) == 1
    assert message in got[0]


def test_a_folder_and_a_missing_file(tmp_path):
    assert refused(tmp_path) == ["FILE cannot be read: Is a directory"]
    assert refused(tmp_path / "no.yaml") == ["FILE cannot be read: No such file or directory"]


def test_billions_of_aliases_are_counted_not_built(tmp_path):
    lines = ["a0: &a0 [x, x]"]
    for i in range(1, 40):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    assert "must not hold more than 20000 values" in refused(write(tmp_path, "\n".join(lines)))[0]


# What plain values mean

SCALARS = [
    ("1e-4", 1e-4),
    ("1.e-4", 1e-4),
    ("1E5", 1e5),
    ("-1.5e+3", -1500.0),
    (".5", 0.5),
    ("010", 10),
    ("1_000", 1000),
    ("0x10", 16),
    ("0o17", 15),
    ("1:30", "1:30"),
    ("2026-11-23", "2026-11-23"),
    ("no", "no"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("", None),
    ("'1e-4'", "1e-4"),
    ("!!str 5", "5"),
    ("e5", "e5"),
    ("1e", "1e"),
    ("1.2.3", "1.2.3"),
    ("-", None),
]


@pytest.mark.parametrize(("text", "value"), SCALARS[:-1])
def test_plain_scalars(text, value):
    got = yaml_file.parse(f"a: {text}", "x").content["a"]
    assert got == value
    assert type(got) is type(value)


def test_anchors_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4, x: 9}]}\n"
    content = yaml_file.parse(text, "x").content
    assert content["b"] == {"x": 1, "y": 3}
    assert content["c"] == {"x": 1, "y": 2, "z": 4}
    assert content == yaml.safe_load(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_what_pyyaml_writes_is_read_back(value):
    # An independent writer; its plain style is YAML 1.1, so texts are quoted.
    text = yaml.safe_dump({"a": value}, default_style='"', allow_unicode=True)
    assert yaml.safe_load(text) == {"a": value}
    assert yaml_file.parse(text, "x").content == {"a": value}


# Overrides

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
RATED = "space:\n  lora: {r: [4, 8]}\n  training.learning_rate: {low: 1e-4, high: 0.1, log: true}\n"


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


@pytest.mark.parametrize(("value", "holds"), [(4, True), (8, True), (99, False)])
def test_a_condition_may_hold_at_the_base_s_value_of_a_conditional_parent(tmp_path, value, holds):
    text = (
        "base: {lora: {r: 8}}\nspace:\n  lora.use_rslora: [true, false]\n"
        "  lora.r: {choices: [4, 16], when: {lora.use_rslora: true}}\n"
        f"  lora.use_dora: {{choices: [true, false], when: {{lora.r: {value}}}}}\n"
    )
    path = write(tmp_path, f"{text}stop: {{trials: 3}}\n")
    if holds:
        assert "lora.use_dora" in loader.load(path).space
    else:
        assert "never holds: lora.r is 4, 16, got 99" in refused(path)[0]


# Base files and places


def test_a_base_may_be_a_file_of_its_own(tmp_path):
    write(tmp_path, "lora: {bias: all}\ndata: {path: rows.csv}\n", "shared/base.yaml")
    write(tmp_path, "question;answer\n", "shared/rows.csv")
    path = write(tmp_path, f"base: shared/base.yaml\n{PLAIN}")
    base = loader.load(path, ["training.max_steps=3"]).base
    assert base["lora"] == {"bias": "all"}
    assert base["data"]["path"] == str(tmp_path / "shared/rows.csv")
    assert base["training"] == {"max_steps": 3}


def test_a_mistake_in_a_base_file_is_named_there(tmp_path):
    base = write(tmp_path, "lora:\n  rank: 3\n", "base.yaml")
    got = refused(write(tmp_path, f"base: base.yaml\n{PLAIN}"))
    assert len(got) == 1
    assert got[0].startswith(f"{base}:2 base.lora.rank: unknown")


def test_a_trial_s_own_config_may_be_the_base(tmp_path):
    spec = loader.load(write(tmp_path, PLAIN))
    config = Space.of(spec).configure({"lora.r": 8}, 7)
    write(tmp_path, config.model_dump_json(indent=1), "config.json")
    again = loader.load(write(tmp_path, f"base: config.json\n{PLAIN}"))
    assert Space.of(again).configure({"lora.r": 8}, 7) == config


def test_places_are_made_absolute_beside_the_file_or_here(tmp_path, monkeypatch):
    here = tmp_path / "here"
    for name in ("sweeps/beside.csv", "here/here.csv", "sweeps/both.csv", "here/both.csv"):
        write(tmp_path, "x", name)
    (tmp_path / "sweeps/model").mkdir()
    monkeypatch.chdir(here)
    path = write(
        tmp_path,
        "base:\n  model: {name_or_path: model}\n  data: {path: both.csv, eval_path: here.csv}\n"
        "  deepspeed: {config: beside.csv}\n  zero_stage: 1\n" + PLAIN,
        "sweeps/a.yaml",
    )
    base = loader.load(path).base
    assert base["model"]["name_or_path"] == str(tmp_path / "sweeps/model")
    assert base["data"] == {
        "path": str(tmp_path / "sweeps/both.csv"),
        "eval_path": str(tmp_path / "here/here.csv"),
    }
    assert base["deepspeed"]["config"] == str(tmp_path / "sweeps/beside.csv")
    typed = loader.load(path, ["data.path=both.csv"]).base["data"]["path"]
    assert typed == str(here / "both.csv")


def test_hub_ids_and_builtins_are_left_alone(tmp_path):
    text = "base:\n  model: {name_or_path: Qwen/Qwen2-0.5B}\n  data: {path: builtin:python-docs}\n"
    base = loader.load(write(tmp_path, text + PLAIN)).base
    assert base["model"]["name_or_path"] == "Qwen/Qwen2-0.5B"
    assert base["data"]["path"] == "builtin:python-docs"


def test_places_in_the_space_are_made_absolute_too(tmp_path):
    write(tmp_path, "x", "a.csv")
    text = "space:\n  data.path: [a.csv, builtin:python-docs]\nstop: {trials: 2}\n"
    (branch,) = loader.load(write(tmp_path, text)).space["data.path"]
    assert branch.choices == (str(tmp_path / "a.csv"), "builtin:python-docs")


# Names


def test_find_knows_names_folders_and_paths(tmp_path, monkeypatch):
    folder = tmp_path / "spaces"
    rank = write(folder, PLAIN, "lora_rank.yaml")
    gaudi = write(folder, PLAIN, "gaudi/llama2_7b_lora.yml")
    mine = write(tmp_path, PLAIN, "mine/x.yaml")
    monkeypatch.chdir(tmp_path)
    assert sweep_files.find("lora_rank", folder) == Path("spaces/lora_rank.yaml")
    assert sweep_files.find("lora_rank.yaml", folder).resolve() == rank
    assert sweep_files.find("gaudi/llama2_7b_lora", folder).resolve() == gaudi
    assert sweep_files.find("mine/x.yaml", folder) == Path("mine/x.yaml")
    assert sweep_files.find(str(mine), folder) == mine
    monkeypatch.chdir(tmp_path / "mine")
    assert sweep_files.find("lora_rank", folder) == rank


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lora_rnk", "did you mean lora_rank?"),
        ("llama2_7b", "did you mean gaudi/llama2_7b_lora?"),
        ("", ""),
        (".", ""),
        ("gaudi", ""),
        ("../spaces/lora_rank", "did you mean lora_rank?"),
        ("a\0b", ""),
        ("x" * 5000, ""),
    ],
)
def test_find_lists_the_names(tmp_path, name, near):
    folder = tmp_path / "spaces"
    write(folder, PLAIN, "lora_rank.yaml")
    write(folder, PLAIN, "gaudi/llama2_7b_lora.yml")
    with pytest.raises(ConfigError) as caught:
        sweep_files.find(name, folder)
    assert "in spaces/: gaudi/llama2_7b_lora, lora_rank" in str(caught.value)
    assert near in str(caught.value)


# Evaluations where the pruner decides

HALVED = "pruner: {name: successive_halving, reduction_factor: 2, evaluate: rungs}\n"


def test_evaluations_at_the_rungs_alone(tmp_path):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n{HALVED}")
    overrides = ["base.training.max_steps=64", "base.training.eval_steps=4"]
    spec = loader.load(path, overrides)
    assert spec.base["evaluation"] == {"steps": [8, 16, 32]}
    assert spec.pruner.options == {"reduction_factor": 2, "min_resource": 8}
    assert "evaluation" not in loader.load(path, [*overrides, "pruner.evaluate=steps"]).base


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pruner=median", None),
        ("pruner.name=patient", "rungs are those of successive_halving and hyperband"),
        ("pruner.evaluate=often", "'steps' or 'rungs'"),
        ("base.training.max_steps=-1", "no rung is known before the last step"),
        ("pruner.min_resource=auto", "no rung is known before the last step"),
        ("pruner.min_resource=64", "and a min_resource below it"),
        ("pruner.min_resource=0", "min_resource"),
        ("pruner.reduction_factor=1", "reduction_factor"),
        ("pruner.reduction_factor=x", "reduction_factor"),
        ("pruner.min_early_stopping_rate=x", "min_early_stopping_rate"),
        ("base.training.eval_steps=x", "training.eval_steps"),
        ("base.evaluation.steps=[3]", "evaluation.steps says already when to evaluate"),
        ("base.evaluation.steps=[]", "optimizer steps from 1 on, ascending"),
        ("base.evaluation.steps=[4, 2]", "optimizer steps from 1 on, ascending"),
    ],
)
def test_rungs_that_cannot_be(tmp_path, override, expected):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n{HALVED}")
    overrides = ["base.training.max_steps=64", "base.training.eval_steps=4", override]
    if expected is None:
        assert loader.load(path, overrides).pruner.evaluate == "steps"
    else:
        assert any(expected in line for line in refused(path, overrides))


# The wall


def test_loading_leaves_torch_and_ray_unloaded(tmp_path):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\nsampler: cmaes\npruner: hyperband\n")
    code = (
        "import sys; from pathlib import Path; from sweep.loading import loader;"
        "from sweep.spec.grid import grid_size; from sweep.spec.space import Space;"
        "spec = loader.load(Path(sys.argv[1])); grid_size(Space.of(spec));"
        "print([name for name in ('torch', 'transformers', 'ray', 'deepspeed', 'peft')"
        " if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


# Fuzzing: a spec or a ConfigError, never another exception, never a hang.

FUZZ = settings(
    deadline=timedelta(seconds=10),
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FRAGMENTS = [
    "space:", "base:", "stop:", "lora.r", "lora:", "training:", "learning_rate", "[4, 8]", "{", "}",
    "[", "]", ":", "- ", "\n", "\n  ", "\n    ", "low: 1", "high: 4", "log: true", "when:", "*a",
    "&a ", "<<: ", "1e-4", ".nan", "null", "choices:", "expression: 2 * lora.r", "'", '"', "!!int ",
    "trials: 3", "? ", "| ", "> ", "#", "\t", "%", "---", "sampler: ", "tpe", "grid", "variables:",
    "enqueue:", "pruner: ", "objectives:", "zero_stage", "\u2028", "\ufeff", "é", "\x00",
]  # fmt: skip


def load_or_refuse(path: Path, overrides=()) -> SweepSpec | None:
    problems = ()
    try:
        spec = loader.load(path, overrides)
    except ConfigError as error:
        problems = error.problems
    if problems:
        assert all(problem.where for problem in problems)
        assert all(len(str(problem)) < 5000 for problem in problems)
        return None
    assert SweepSpec.from_content(spec.content()) == spec
    for params in extreme_points(Space.of(spec), limit=5):
        Space.of(spec).configure(params, 0)
    return spec


@FUZZ
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=40))
def test_fuzzed_text(tmp_path, fragments):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes("".join(fragments).encode("utf-8", "surrogatepass"))
    load_or_refuse(path)


@FUZZ
@given(st.binary(max_size=200))
def test_fuzzed_bytes(tmp_path, data):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(data)
    load_or_refuse(path)


@settings(FUZZ, max_examples=examples(150))
@given(st.sampled_from(SHIPPED), st.integers(0, 2**32))
def test_mutated_shipped_files(tmp_path, source, seed):
    """Lines dropped, doubled, indented; characters and fragments put anywhere."""
    rng = random.Random(seed)
    text = source.read_text()
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        lines = text.splitlines(keepends=True) or [""]
        line = rng.randrange(len(lines))
        text = rng.choice(
            [
                text[:at] + rng.choice(FRAGMENTS) + text[at:],
                text[:at] + text[at + rng.randint(1, 5) :],
                "".join(lines[:line] + lines[line + 1 :]),
                "".join([*lines[:line], lines[line], *lines[line:]]),
                "".join([*lines[:line], "  " + lines[line], *lines[line + 1 :]]),
            ]
        )
    path = tmp_path / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    load_or_refuse(path)


WORDS = [
    "question", "name", "base", "space", "variables", "objective", "objectives", "sampler",
    "pruner", "enqueue", "stop", "resources", "choices", "low", "high", "step", "log", "type",
    "value", "expression", "when", "trials", "metric", "direction", "seed", "wrapped", "patience",
    "lora", "training", "model", "data", "deepspeed", "config", "gaudi_config", "zero_stage", "x",
    "lora.r", "lora.lora_alpha", "lora.lora_dropout", "training.learning_rate", "lora.use_rslora",
    "training.lr_scheduler_kwargs.num_cycles", "lora.target_modules", "r", "path", "max_steps",
    "data.path", "deepspeed.config.bf16", "gaudi_config.a", "evaluate", "reduction_factor",
    "min_resource", "evaluation", "steps",
]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**19), st.floats(), st.text(max_size=5),
    st.sampled_from([4, 8, 0.1, 1e-4, "tpe", "grid", "none", "median", "2 * lora.r", "x", "lora.r",
                     "int", "float", "eval_loss", "builtin:python-docs", "patient", "rungs",
                     "successive_halving", "hyperband"]),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
    ),
    max_leaves=30,
)
DIMENSIONS = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(LEAVES, max_size=3),
        "low": LEAVES,
        "high": LEAVES,
        "expression": st.sampled_from(["2 * lora.r", "x", "lora.r / x", "a.b", "1 +", "10 ** 99"]),
        "when": st.dictionaries(st.sampled_from(WORDS), LEAVES, max_size=2),
    },
)
SHEETS = st.fixed_dictionaries(
    {"space": st.dictionaries(st.sampled_from(WORDS), DIMENSIONS | TREES, max_size=4)},
    optional={
        "base": st.dictionaries(st.sampled_from(WORDS), TREES, max_size=3),
        "variables": st.dictionaries(st.sampled_from(WORDS), DIMENSIONS | TREES, max_size=3),
        **{name: TREES for name in ("sampler", "pruner", "stop", "enqueue", "objectives", "name")},
    },
)


@settings(FUZZ, max_examples=examples(200))
@given(SHEETS | TREES)
def test_fuzzed_trees(tmp_path, tree):
    path = tmp_path / "tree.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
    load_or_refuse(path)


@settings(FUZZ, max_examples=examples(150))
@given(
    st.sampled_from(SHIPPED),
    st.lists(
        st.builds(
            lambda words, value: f"{'.'.join(words)}={value}",
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
            st.sampled_from(FRAGMENTS) | st.text(max_size=5),
        )
        | st.text(max_size=10),
        min_size=1,
        max_size=3,
    ),
)
def test_fuzzed_overrides(source, overrides):
    load_or_refuse(source, overrides)


def test_a_budget_is_device_hours(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hours: 8}\n")
    assert loader.load(path).stop.device_hours == 8
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hours: 8}\nstop: {device_hours: 4}\n")
    with pytest.raises(ConfigError, match=r"x.yaml:2 budget.device_hours: is said once"):
        loader.load(path)
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hour: 8}\n")
    with pytest.raises(ConfigError, match="did you mean device_hours"):
        loader.load(path)


def test_a_metric_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nsampler: grid\nobjective:\n  metric: []\n")
    assert refused(path) == ["FILE:4 objective.metric: input should be a valid string, got []"]
