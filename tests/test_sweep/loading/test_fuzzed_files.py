"""Fuzzing: a spec or a ConfigError, never another exception, never a hang."""

import random
from datetime import timedelta
from pathlib import Path

import yaml
from helpers.fuzz import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweep.loading import loader, sweep_files
from sweep.spec.grid import extreme_points
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError

SHIPPED = sorted(sweep_files.SPACES.rglob("*.yaml"))


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
