"""Messages of the command: printed as they are, and what to do after a full disk."""

from __future__ import annotations

import errno
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from helpers.command import run_command

from sweep.cli.output import exit_on_bad_input


def test_text_quoted_from_a_file_is_printed_as_it_is(tmp_path):
    path = tmp_path / "colons.yaml"
    path.write_text("question: 'a'\nsampler: 'tpe:x:'\nspace: {lora.r: [2]}\nstop: {trials: 1}\n")
    done = run_command("check", path)
    assert done.returncode == 2
    assert "got 'tpe:x:'" in done.stderr


def test_a_full_disk_says_how_to_go_on(capsys):
    for number, hint in ((errno.ENOSPC, True), (errno.EACCES, False)):
        with pytest.raises(typer.Exit), exit_on_bad_input():
            raise OSError(number, "no such luck")
        told = capsys.readouterr().err
        assert "no such luck" in told
        assert ("give the command again" in told) is hint


def test_a_full_output_is_not_taken_for_the_disk(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nstop: {trials: 2}\n")
    words = [sys.executable, "-m", "sweep", "check", str(path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "standard output cannot be written: [Errno 28] No space left on device"
    )


def test_output_into_a_pipe_is_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    path = tmp_path / "sweep.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nstop: {trials: 2}\n")
    done = run_command("check", path)
    assert done.returncode == 0, done.stderr
    advice = next(line for line in done.stdout.splitlines() if "alpha / r" in line)
    assert advice.endswith("holds it")


def test_the_version_is_the_package_s():
    done = run_command("--version")
    assert (done.returncode, done.stdout) == (0, f"gaudi-sweep {version('gaudi-sweep')}\n")
