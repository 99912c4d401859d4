"""What the doctor says, on this machine and about things that are wrong."""

from __future__ import annotations

import socket

import pytest
from packaging.requirements import Requirement

from sweep.planning import doctor


def test_this_machine_has_no_error(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    lines = list(doctor.examine(tmp_path))
    assert [str(line) for line in lines if line.level == "error"] == []
    assert {"python", "packages", "ray", "disk", "file system"} <= {x.subject for x in lines}


def test_a_cluster_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (line,) = doctor.check_ray(tmp_path)
    assert line.level == "error"
    assert "unset RAY_ADDRESS" in line.advice


def test_a_cluster_that_answers_is_not(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        (line,) = doctor.check_ray(tmp_path)
    assert line.level == "ok"


def test_a_check_that_breaks_is_a_finding(tmp_path):
    def check_broken(runs):
        raise OSError("no such device")
        yield

    (line,) = doctor.examine(tmp_path, [check_broken])
    assert (line.level, line.subject) == ("warning", "broken")
    assert line.found == "could not be checked: no such device"


@pytest.mark.parametrize(
    ("pin", "said"),
    [
        ("optuna==0.0.1", "pinned ==0.0.1"),
        ("optuna>=1", ""),
        ("no-such-package==1", "is missing"),
    ],
)
def test_pins(pin, said):
    text = doctor.mismatch(Requirement(pin))
    assert said in text
    assert bool(text) == bool(said)


def test_low_space_is_a_warning(tmp_path):
    assert next(doctor.check_disk(tmp_path, low_gb=1e9)).level == "warning"
