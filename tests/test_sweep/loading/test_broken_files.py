"""Files that are refused: every mistake with its line, as `tests/broken` expects."""

import pytest
from helpers.paths import TESTS
from helpers.sweeps.sweep_files import PLAIN, refused, write

from trial.config import yaml_file

BROKEN = sorted(TESTS.glob("broken/*.yaml"))


def says(line: str, expected: str) -> bool:
    """Whether a message is the expected one; ` ... ` stands for a list of known names."""
    start = 0
    for part in expected.split(" ... "):
        found = line.find(part.strip(), start)
        if found < 0 or (start == 0 and found > 0):
            return False
        start = found + len(part.strip())
    return start == len(line) or expected.endswith("...")


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
        ("deep.yaml", b"[" * 5000, "nested deeper than 40"),
        ("deep_map.yaml", b"a: " + b"{b: " * 50 + b"1" + b"}" * 50, "nested deeper than 40"),
        ("digits.yaml", b"stop: {trials: " + b"9" * 5000 + b"}", "below 2**63"),
        ("my sweep.yaml", PLAIN.encode(), "name: is needed"),
    ],
)
def test_unreadable_files_have_one_problem(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    got = refused(path)
    assert len(got) == 1
    assert message in got[0]


def test_a_folder_or_a_missing_file_cannot_be_read(tmp_path):
    assert refused(tmp_path) == ["FILE cannot be read: Is a directory"]
    assert refused(tmp_path / "no.yaml") == ["FILE cannot be read: No such file or directory"]


def test_aliases_that_expand_to_billions_of_values_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]"]
    for i in range(1, 40):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    assert "must not hold more than 5000 values" in refused(write(tmp_path, "\n".join(lines)))[0]
