"""What is removed is ours by name, owner, marker and lock; other users get at nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.other_user import NOBODY, as_nobody, needs_root, shared_folder

from sweep.ray_backend import compat
from sweep.ray_backend.local import temp_folder
from sweep.ray_backend.local.temp_folder import CONTENT, MARKER, PREFIX, TempFolder


@pytest.fixture
def root(monkeypatch) -> Iterator[Path]:
    """The only folder for temporary files there is."""
    with shared_folder() as made:
        monkeypatch.setattr(temp_folder.tempfile, "tempdir", str(made))
        monkeypatch.setattr(temp_folder, "SHORT_ROOTS", ())
        yield made


def left_behind(root: Path, name: str = f"{PREFIX}dead", content: bytes = CONTENT) -> Path:
    """A folder as a killed driver leaves it."""
    folder = root / name
    (folder / "r" / "session" / "sockets").mkdir(parents=True)
    (folder / "r" / "session" / "log").write_text("something")
    (folder / MARKER).write_bytes(content)
    return folder


def test_what_a_killed_driver_left_is_removed_and_the_others_folder_stays(root):
    dead = left_behind(root)
    code = (
        "import sys, os, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from sweep.ray_backend.local.temp_folder import TempFolder\n"
        "print(TempFolder.create().path, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        theirs = Path(other.stdout.readline().strip())
        assert not dead.exists()
        mine = TempFolder.create()
        assert sorted(root.iterdir()) == sorted([theirs, mine.path])
        other.kill()
    temp_folder.remove_dead_folders()
    assert list(root.iterdir()) == [mine.path]
    mine.release()
    temp_folder.remove_dead_folders()
    assert list(root.iterdir()) == []


def not_ours(root: Path) -> None:
    """Folders with a name like ours that somebody else made, long ago."""
    (root / f"{PREFIX}mydata").mkdir()
    (root / f"{PREFIX}mydata" / "thesis.tex").write_text("years of work")
    left_behind(root, f"{PREFIX}other", CONTENT.replace(b"1", b"2"))
    left_behind(root, f"{PREFIX}empty", b"")
    left_behind(root, "gs-mydata")
    linked = left_behind(root, f"{PREFIX}linked")
    (linked / MARKER).rename(root / "marker")
    (linked / MARKER).symlink_to(root / "marker")
    pipe = left_behind(root, f"{PREFIX}pipe")
    (pipe / MARKER).unlink()
    os.mkfifo(pipe / MARKER)
    (root / f"{PREFIX}file").write_text("no folder")
    elsewhere = left_behind(root, "elsewhere")
    (root / f"{PREFIX}link").symlink_to(elsewhere)
    for path in root.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)


def test_what_is_not_marked_as_ours_stays(root):
    not_ours(root)
    before = sorted(root.rglob("*"))
    temp_folder.remove_dead_folders()
    TempFolder.create().release()
    temp_folder.remove_dead_folders()
    assert sorted(root.rglob("*")) == before
    for path in root.iterdir():
        if path.name.startswith(PREFIX) and path.is_symlink():
            temp_folder.remove_known(path)
    temp_folder.remove_known(root / "gs-mydata")
    assert sorted(root.rglob("*")) == before


@needs_root
def test_another_users_folder_stays(root):
    folder, marked = left_behind(root, f"{PREFIX}theirs"), left_behind(root, f"{PREFIX}marker")
    os.chown(folder, NOBODY, NOBODY)
    os.chown(marked / MARKER, NOBODY, NOBODY)
    before = sorted(root.rglob("*"))
    temp_folder.remove_dead_folders()
    temp_folder.remove_known(folder)
    assert sorted(root.rglob("*")) == before


def test_a_link_inside_is_removed_and_not_followed(root):
    (root / "kept").mkdir()
    (root / "kept" / "file").write_text("something")
    dead = left_behind(root)
    (dead / "link").symlink_to(root / "kept")
    (dead / "r" / "link").symlink_to(root / "kept")
    temp_folder.remove_dead_folders()
    assert sorted(root.rglob("*")) == [root / "kept", root / "kept" / "file"]


@needs_root
def test_nobody_else_gets_into_it_or_moves_it_away(root):
    mine = TempFolder.create()
    mine.ray.mkdir()
    mine.ray.chmod(0o777)  # As Ray does.
    assert stat.S_IMODE(mine.path.stat().st_mode) == 0o700
    assert as_nobody(lambda: os.listdir(mine.path)) == "PermissionError"
    assert as_nobody(lambda: (mine.path / MARKER).read_bytes()) == "PermissionError"
    assert as_nobody(lambda: os.listdir(mine.ray)) == "PermissionError"
    assert as_nobody(lambda: os.rename(mine.ray, mine.path / "x")) == "PermissionError"
    assert as_nobody(lambda: os.rename(mine.path, root / "x")) == "PermissionError"
    assert as_nobody(lambda: (root / "allowed").mkdir()) is None
    mine.release()


def test_a_long_tmpdir_is_replaced_by_a_shorter_one(root, monkeypatch, tmp_path):
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(temp_folder.tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match=rf"^TMPDIR: .* 107 bytes.*; got {deep}.*shorter path$"):
        TempFolder.create()
    monkeypatch.setattr(temp_folder, "SHORT_ROOTS", ("/nowhere", str(root)))
    mine = TempFolder.create()
    assert mine.path.parent == root
    mine.release()
    temp_folder.remove_dead_folders()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_is_exact(monkeypatch, tmp_path, over):
    """A root of so many bytes gives sockets of 107 bytes."""
    monkeypatch.setattr(temp_folder, "SHORT_ROOTS", ())
    with shared_folder() as short:
        exact = short / ("x" * (temp_folder.longest_root() + over - len(str(short)) - 1))
        exact.mkdir()
        monkeypatch.setattr(temp_folder.tempfile, "tempdir", str(exact))
        if over:
            with pytest.raises(ValueError, match="TMPDIR"):
                TempFolder.create()
        else:
            mine = TempFolder.create()
            assert len(str(mine.ray / compat.longest_socket())) == 107
            mine.release()


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o777, 0o775])
def test_a_folder_in_which_others_may_rename_is_not_safe(mode):
    with shared_folder() as shared:
        (shared / "x").mkdir()
        (shared / "x").chmod(mode)
        (shared / "x" / "below").mkdir()
        safe = mode in (0o755, 0o1777)
        assert temp_folder.is_safe(shared / "x") == safe
        assert temp_folder.is_safe(shared / "x" / "below") == safe
        assert not temp_folder.is_safe(shared / "missing")


def test_a_tmpdir_that_is_not_safe_is_replaced_where_there_is_one(root, monkeypatch):
    with shared_folder() as risky:
        risky.chmod(0o777)
        monkeypatch.setattr(temp_folder.tempfile, "tempdir", str(risky))
        monkeypatch.setattr(temp_folder, "SHORT_ROOTS", (str(root),))
        assert temp_folder.TempFolder.create().path.parent == root
        monkeypatch.setattr(temp_folder, "SHORT_ROOTS", ())
        assert temp_folder.TempFolder.create().path.parent == risky
