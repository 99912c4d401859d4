"""Output that nobody takes: real pipes, a real terminal, a real full device, in real processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from trial.optional_output import optional_output
logging.basicConfig(filename=sys.argv[1], format="%(message)s")
with optional_output():
    sys.stdin.readline()
    for _ in range(3):
        print("a line that nobody reads", flush=True)
    print("and one that stays in the buffer")
open(sys.argv[1], "a").write("went on\\n")
"""


def run(path, output: int | None, lose) -> tuple[int, str, list[str]]:
    """Run PROGRAM; `lose` is called before it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
    )
    lose()
    _, errors = process.communicate("go\n")
    return process.returncode, errors, path.read_text().splitlines()


def pipe() -> tuple[int, int]:
    return os.pipe()


@pytest.mark.parametrize(
    ("opened", "why"), [(pipe, "Broken pipe"), (pty.openpty, "Input/output error")]
)
def test_a_reader_that_is_gone_does_not_end_the_program(opened, why, tmp_path):
    reading, writing = opened()

    def lose() -> None:
        os.close(writing)
        os.close(reading)

    code, errors, said = run(tmp_path / "log", writing, lose)
    assert (code, errors) == (0, "")
    assert said == [f"standard output is lost ({why}); training goes on without it", "went on"]


def test_a_full_device_is_no_full_disk_of_the_study(tmp_path):
    with open("/dev/full", "w") as full:
        code, errors, said = run(tmp_path / "log", full.fileno(), lambda: None)
    assert (code, errors, said[-1]) == (0, "", "went on")
    assert "No space left on device" in said[0]


def test_output_that_is_read_arrives_whole(tmp_path):
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "log")]
    done = subprocess.run(words, input="go\n", capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *["a line that nobody reads"] * 3,
        "and one that stays in the buffer",
    ]
    assert (tmp_path / "log").read_text() == "went on\n"
