"""From a file to a spec: base files, and what loading imports."""

import os
import subprocess
import sys

from helpers.paths import ROOT
from helpers.sweeps.sweep_files import PLAIN, RATED, refused, write

from sweep.loading import loader
from sweep.spec.space import Space


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
