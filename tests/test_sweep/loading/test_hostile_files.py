"""Sweep files that are made to take long: each is refused, in bounded time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.loading.loader import load
from trial.config import yaml_file
from trial.config.errors import ConfigError

CPU_SECONDS = 45
"""For all files of the test; each one takes below a second, and minutes where time is quadratic."""
MEMORY = 4 * 2**30


def filled(head: str, unit: str, tail: str = "") -> str:
    """A text as long as a sweep file may be, with `unit` repeated in its middle."""
    return head + unit * ((yaml_file.MAX_BYTES - len(head) - len(tail)) // len(unit)) + tail


def listed(head: str, item: str, separator: str, tail: str) -> str:
    """A text with nearly as many numbered items as a sweep file may have values."""
    items = (item.format(number) for number in range(yaml_file.MAX_VALUES * 9 // 20))
    return head + separator.join(items) + tail


TEXTS = {
    "one letter": filled("question: ", "a"),
    "one quoted letter": filled('space: {lora.r: {expression: "', "a", '"}}'),
    "user information of a URL": filled("question: a://", ":"),
    "many URLs": filled('question: "', "a://b:", '"'),
    "starts of web tokens": filled("question: ", "eyJaaaaaaaaaaaa-"),
    "parameters of a URL": filled("question: ", "?token"),
    "brackets": filled("", "["),
    "braces": filled("", "{"),
    "dashes": filled("", "- "),
    "question marks": filled("", "? "),
    "one long key": filled("", "a.", ": 1"),
    "digits": filled("space: {lora.r: [", "1_", "]}"),
    "lines": filled("", "a\n"),
    "parentheses": filled('space: {lora.r: {expression: "', "(", '"}}'),
    "unknown keys": listed("", "k{}: 1", "\n", "\n"),
    "unknown arguments": listed("base: {training: {", "k{}: 1", ", ", "}}"),
    "unknown dimensions": listed("space: {", "lora.x{}: [1]", ", ", "}"),
    "objectives": listed("objectives: [", "m{}", ", ", "]"),
}

PROGRAM = """
import sys
from pathlib import Path
from sweep.loading.loader import load
from trial.config.errors import ConfigError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        load(path)
    except ConfigError:
        print(path.stem, flush=True)
"""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def test_each_is_refused_before_it_takes_long(tmp_path):
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    assert done.stdout.splitlines() == sorted(TEXTS)


def refused(tmp_path: Path, text: str) -> list[str]:
    source = tmp_path / "sweep.yaml"
    source.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(source)
    return [str(problem) for problem in error.value.problems]


def test_of_very_many_mistakes_the_first_are_named(tmp_path):
    problems = refused(tmp_path, "\n".join(f"k{number}: 1" for number in range(500)))
    assert "k0" in "".join(problems)
    assert any("has more than 200 mistakes" in problem for problem in problems)
    assert len(problems) == 201
