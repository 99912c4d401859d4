"""Caches where the home folder can be written, and where it cannot."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from helpers.other_user import NOBODY, as_nobody, needs_root, shared_folder

from trial.store import cache_dir

NAMES = (cache_dir.CACHE, cache_dir.MATPLOTLIB, cache_dir.HUGGING_FACE)


@pytest.fixture(autouse=True)
def plain(monkeypatch, tmp_path) -> Path:
    """A home that can be written, and none of the variables."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def set_variables() -> dict[str, str]:
    cache_dir.set_cache_folders()
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_a_home_that_can_be_written_keeps_the_caches(plain):
    assert set_variables() == {}
    assert cache_dir.cache_folder("tokens") == plain / ".cache" / "gaudi-sweep" / "tokens"


@pytest.fixture
def temporary(monkeypatch):
    with shared_folder() as shared:
        monkeypatch.setattr(tempfile, "tempdir", str(shared))
        yield shared


def test_a_home_that_is_missing_gives_way(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    made = temporary / f"gaudi-sweep-cache-{os.geteuid()}"
    assert set_variables() == {cache_dir.CACHE: str(made), cache_dir.MATPLOTLIB: str(made)}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert cache_dir.cache_folder("tokens") == made / "gaudi-sweep" / "tokens"


@needs_root
def test_a_home_of_somebody_else_gives_way_but_its_models_are_read(temporary, plain, monkeypatch):
    (temporary / "home" / ".cache" / "huggingface").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(temporary / "home"))
    found = as_nobody(set_variables)
    made = str(temporary / f"gaudi-sweep-cache-{NOBODY}")
    models = str(temporary / "home" / ".cache" / "huggingface")
    assert found == {
        cache_dir.CACHE: made, cache_dir.MATPLOTLIB: made, cache_dir.HUGGING_FACE: models
    }  # fmt: skip


def test_what_the_user_has_set_stays(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    monkeypatch.setenv(cache_dir.CACHE, "/mine")
    found = set_variables()
    assert found[cache_dir.CACHE] == "/mine"
    assert cache_dir.MATPLOTLIB in found
    assert cache_dir.HUGGING_FACE not in found


@needs_root
def test_what_another_user_has_put_in_its_place_is_not_used(temporary, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/1/nowhere")
    name = temporary / f"gaudi-sweep-cache-{os.geteuid()}"
    as_nobody(lambda: name.mkdir(mode=0o777))
    assert name.is_dir()
    assert set_variables() == {}


def test_a_link_is_not_a_private_folder(tmp_path):
    (tmp_path / "real").mkdir(mode=0o777)
    (tmp_path / "real").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert not cache_dir.make_private(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o777
    assert cache_dir.make_private(tmp_path / "real")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o700
    (tmp_path / "file").touch()
    assert not cache_dir.make_private(tmp_path / "file")
    assert not cache_dir.make_private(tmp_path / "missing" / "below")
