"""A user without a passwd entry, whose HOME cannot be written: as in OpenShift's containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.other_user import needs_root, shared_folder
from helpers.paths import ROOT
from helpers.training import models

from trial.store.folders import StudyFolder

USER = 1_234_567
"""Not in /etc/passwd; its group is root's, as in such containers."""

# This capability lets the user read what root has made: the interpreter and the checkout.
AS_USER = (
    "setpriv", f"--reuid={USER}", "--regid=0", "--clear-groups",
    "--bounding-set=-all,+dac_read_search",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_sweep_trains_and_reports():
    with shared_folder() as shared:
        temporary, runs = shared / "t", shared / "runs"
        for folder in (temporary, runs):
            folder.mkdir()
            os.chown(folder, USER, 0)
        sweep = write_sweep(shared)
        said = run(temporary, "run", sweep, "--runs", runs, HOME="/")
        study = StudyFolder(runs / sweep.stem)
        result = study.trial(0).read_result()
        assert (result.state, study.path.stat().st_uid) == ("complete", USER)
        assert (study.path / "report" / "report.html").is_file()
        logs = said + "".join(path.read_text() for path in study.path.rglob("*.log"))
        assert "cannot be written" not in logs
        assert "Permission denied" not in logs
        tokens = temporary / f"gaudi-sweep-cache-{USER}" / "gaudi-sweep" / "tokens"
        assert len(list(tokens.iterdir())) == 2
        assert not list(temporary.glob("gsweep-*"))
        # Without the variable there is no home at all.
        assert "1 complete" in run(temporary, "status", sweep.stem, "--runs", runs)


def write_sweep(folder: Path) -> Path:
    """A sweep of one trial of two steps."""
    model, rows = models.make_model(folder / "model"), models.write_rows(folder / "rows.jsonl")
    base = {
        "model": {"name_or_path": str(model)},
        "data": {"path": str(rows), "max_length": 32, "eval_fraction": 0.2},
        "training": {"max_steps": 2, "eval_steps": 1, "per_device_train_batch_size": 2},
    }
    sweep = folder / "one.yaml"
    sweep.write_text(yaml.safe_dump({"base": base, "space": {"lora.r": [2]}, "sampler": "grid"}))
    return sweep


def run(temporary: Path, *words: object, **variables: str) -> str:
    """What the command says to this user, whose environment has little beside these variables."""
    kept = ("PATH", "OMP_NUM_THREADS", "COLUMNS", "TERM")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **variables}
    done = subprocess.run(
        [*AS_USER, sys.executable, "-m", "sweep", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
