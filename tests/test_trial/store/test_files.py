"""A folder written through `atomic_folder` is whole or not there."""

import fcntl
import os
import socket

import pytest
from helpers.other_user import NOBODY, needs_root

from trial.store import files
from trial.store.files import atomic_folder


def write(folder, text):
    with atomic_folder(folder) as temporary:
        (temporary / "a.txt").write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    write(tmp_path / "out", "one")
    (tmp_path / "out" / "b.txt").write_text("only in the first")
    write(tmp_path / "out", "two")
    assert contents(tmp_path / "out") == {"a.txt": "two"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    write(tmp_path / "out", "one")
    for name in ("out", "new"):
        with pytest.raises(TypeError):
            write(tmp_path / name, 3)
    assert os.listdir(tmp_path) == ["out"]
    assert contents(tmp_path / "out") == {"a.txt": "one"}


def test_files_are_on_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("replace"), replace(*a))[1])
    write(tmp_path / "out", "one")
    # The file, its folder; the rename; the parent.
    assert order == ["fsync", "fsync", "replace", "fsync"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "one")
    replace = os.replace

    def fails_for_the_new(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fails_for_the_new)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "out", "two")
    assert contents(tmp_path / "out") == {"a.txt": "one"}
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_kill_between_the_renames_left_is_put_back(tmp_path):
    write(tmp_path / "out", "one")
    os.rename(tmp_path / "out", tmp_path / ".out.old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out"):
        raise RuntimeError
    assert contents(tmp_path / "out") == {"a.txt": "one"}
    assert os.listdir(tmp_path) == ["out"]


def test_the_half_folder_of_a_dead_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    host, dead = socket.gethostname(), 2**22 + 1
    for pid in (dead, os.getppid()):
        (tmp_path / f".out.{host}.{pid}.tmp").mkdir()
    write(tmp_path / "out", "one")
    assert sorted(os.listdir(tmp_path)) == [f".out.{host}.{os.getppid()}.tmp", "out"]


def test_a_half_folder_that_is_being_written_elsewhere_stays(tmp_path):
    """As from a container with a process table of its own, and this host's name and files."""
    half = tmp_path / f".out.{socket.gethostname()}.{2**22 + 1}.tmp"
    half.mkdir()
    handle = os.open(half, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    write(tmp_path / "out", "one")
    assert half.is_dir()
    os.close(handle)
    write(tmp_path / "out", "two")
    assert not half.exists()


def test_a_folder_is_locked_while_it_is_written(tmp_path):
    with atomic_folder(tmp_path / "out") as temporary:
        handle = os.open(temporary, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)


@needs_root
def test_another_users_folder_and_a_link_stay(tmp_path):
    theirs, link = (tmp_path / f".out.{socket.gethostname()}.{2**22 + more}.tmp" for more in (1, 2))
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    (tmp_path / "data").mkdir()
    link.symlink_to(tmp_path / "data")
    write(tmp_path / "out", "one")
    assert sorted(tmp_path.iterdir()) == sorted([theirs, link, tmp_path / "data", tmp_path / "out"])
