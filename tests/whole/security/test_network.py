"""Ray listens on loopback alone, and secrets of the environment are written nowhere."""

from __future__ import annotations

import os
import subprocess
import sys

import yaml
from helpers.command import run_command
from helpers.paths import ROOT

from sweep.open_study import stored_storage
from sweep.study.verify import verify
from trial.store.folders import StudyFolder

LISTEN = """
import psutil
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.executor import RayExecutor
executor = RayExecutor(RaySettings(device="cpu", concurrency=1, expected_jobs=1))
executor.start()
try:
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for found in process.net_connections(kind="inet"):
            if found.status == psutil.CONN_LISTEN:
                print("LISTEN", process.name(), found.laddr.ip)
finally:
    executor.close()
"""


def test_ray_listens_on_loopback_alone():
    done = subprocess.run(
        [sys.executable, "-c", LISTEN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("LISTEN")]
    assert {"gcs_server", "raylet"} <= {name for _, name, *_ in found}
    assert {line[-1].removeprefix("::ffff:") for line in found} <= {"127.0.0.1", "::1"}, found


SECRETS = {
    "WANDB_API_KEY": "wandb-sesame",
    "HF_TOKEN": "hf_sesame",
    "AWS_SECRET_ACCESS_KEY": "aws-sesame",
    "AWS_SESSION_TOKEN": "session-sesame",
}


def test_secrets_of_the_environment_reach_no_file_and_no_terminal(tiny, tmp_path):
    content = {
        "base": {
            "model": {"name_or_path": str(tiny[0])},
            "data": {"path": str(tiny[1]), "max_length": 32},
            "training": {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e30},
        },
        "space": {"training.seed": [1, 2]},
        "sampler": "grid",
    }
    source = tmp_path / "x.yaml"
    source.write_text(yaml.safe_dump(content))
    done = run_command("run", source, "--runs", tmp_path / "runs", env=SECRETS)
    study = StudyFolder(tmp_path / "runs" / "x")
    # Failed trials write the most: tracebacks, causes, logs.
    assert {folder.read_result().state for _, folder in study.all_trials()} == {"failed"}
    assert "sesame" not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"study.json", "train.log", "report.md"} <= {path.name for path in files}
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
    assert verify(study, stored_storage(study)) == []
