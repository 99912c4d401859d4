"""Studies that an earlier version wrote and left unfinished go on as they would have gone on there.

`compat/` holds two studies of commit 612e136, each with finished and interrupted trials, and
`expected.json`: what that commit itself made of them when it resumed them, on a machine as
`machine.json` says. `solo` was killed and trains one trial at a time; `packed` was interrupted by
Ctrl-C and trains two in one process.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.command import invoke, run_command
from helpers.paths import TESTS

from sweep.spec.spec import SweepSpec
from trial.store.folders import StudyFolder, TrialFolder

COMPAT = TESTS / "whole" / "compat"
CPUINFO = Path("/proc/cpuinfo")
DATA = "{DATA}"
"""Stands for the absolute path of the data file in the archived studies."""
EXPECTED = json.loads((COMPAT / "expected.json").read_text())
RECORDED_ON = json.loads((COMPAT / "machine.json").read_text())
CLOSE = 1e-4
"""Tolerance where another processor, thread count or torch rounds otherwise."""


def rounding(study: StudyFolder) -> dict[str, object]:
    """What decides how this machine rounds sums in a study, in the form of `machine.json`."""
    fields = r"^(?:vendor_id|cpu family|model)\s*: (.+)$"
    first_core = CPUINFO.read_text().partition("\n\n")[0]
    return {
        "processor": re.findall(fields, first_core, re.MULTILINE),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": SweepSpec.from_content(study.read_record().spec).resources.cpus_per_trial,
        "torch": torch.__version__,
    }


class Resumed(NamedTuple):
    """A study that was resumed, and its result files from before."""

    study: StudyFolder
    output: str
    finished: dict[int, bytes]


def unpack(name: str, runs: Path) -> StudyFolder:
    """The archived study below `runs`, with the data file beside it."""
    with tarfile.open(COMPAT / f"{name}.tar.gz") as archive:
        archive.extractall(runs, filter="data")
    data = shutil.copy(COMPAT / "capitals.jsonl", runs)
    study = StudyFolder(runs / name)
    for path in [study.record, study.journal, *study.path.glob("trials/*/config.json")]:
        path.write_text(path.read_text().replace(DATA, str(data)))
    return study


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def resumed(request, tmp_path_factory) -> Resumed:
    study = unpack(request.param, tmp_path_factory.mktemp("resumed"))
    before = {
        n: folder.result.read_bytes() for n, folder in study.all_trials() if has_ended(folder)
    }
    done = run_command("resume", study.name, "--runs", study.path.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return Resumed(study, done.stdout, before)


def has_ended(folder: TrialFolder) -> bool:
    return folder.read_result() is not None


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_unfinished_study_is_verified_and_reported(name, tmp_path):
    study = unpack(name, tmp_path)
    states = {has_ended(folder) for _, folder in study.all_trials()}
    assert states == {True, False}
    for verb in ("verify", "status", "report"):
        done = invoke(verb, name, "--runs", tmp_path)
        assert done.exit_code == 0, done.output
    assert (study.report / "report.html").exists()


def test_resumed_trials_end_with_the_recorded_losses(resumed):
    expected = EXPECTED[resumed.study.name]
    results = {n: folder.read_result() for n, folder in resumed.study.all_trials()}
    assert sorted(results) == sorted(map(int, expected))
    same_machine = rounding(resumed.study) == RECORDED_ON
    for number, result in results.items():
        row = expected[str(number)]
        assert (result.state, result.steps) == (row["state"], row["steps"])
        tolerance = 0.0 if same_machine else CLOSE
        assert result.eval_loss == pytest.approx(row["eval_loss"], rel=0.0, abs=tolerance), (
            same_machine
        )


def test_trials_that_were_not_proposed_yet_get_the_recorded_parameters(resumed):
    for number, folder in resumed.study.all_trials():
        config, row = folder.read_config(), EXPECTED[resumed.study.name][str(number)]
        assert config.lora.r == row["r"]
        assert config.training["learning_rate"] == pytest.approx(row["learning_rate"], rel=1e-9)


def test_interrupted_trials_go_on_from_their_checkpoints(resumed):
    steps = {
        n: folder.read_attempts()[-1].resumed_from
        for n, folder in resumed.study.all_trials()
        if n not in resumed.finished
    }
    expected = {n: EXPECTED[resumed.study.name][str(n)]["resumed_from"] for n in steps}
    assert steps == expected
    assert any(steps.values())


def test_finished_trials_are_not_touched(resumed):
    assert resumed.finished
    for number, content in resumed.finished.items():
        assert resumed.study.trial(number).result.read_bytes() == content


def test_the_resumed_study_is_consistent_and_compared(resumed):
    runs = resumed.study.path.parent
    done = invoke("verify", resumed.study.name, "--runs", runs)
    assert (done.exit_code, "0 differences" in done.output) == (0, True), done.output
    done = invoke("compare", resumed.study.name, "--runs", runs, "--no-samples")
    assert done.exit_code == 0, done.output
