"""The cache of compiled graphs among the temporary files of all users."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.other_user import as_nobody, needs_root, shared_folder

from trial.devices import environment


@pytest.fixture
def recipes(monkeypatch) -> Iterator[Path]:
    """The cache's folder of a study on several nodes; it does not exist yet."""
    with shared_folder() as shared:
        monkeypatch.setattr(tempfile, "tempdir", str(shared))
        found = environment.recipe_cache(Path("/runs/one"), several_nodes=True, environ={})
        monkeypatch.setenv(environment.RECIPES, found)
        path, *rest = found.split(",")
        assert rest == ["false", "1024"]
        assert Path(path).parent == shared
        yield Path(path)


def test_it_is_this_users_alone(recipes):
    environment.make_recipe_folder()
    assert stat.S_IMODE(recipes.stat().st_mode) == 0o700
    environment.make_recipe_folder()
    assert environment.RECIPES in os.environ


@needs_root
def test_what_another_user_has_prepared_is_not_run(recipes, caplog):
    as_nobody(lambda: recipes.mkdir(mode=0o777))
    environment.make_recipe_folder()
    assert environment.RECIPES not in os.environ
    assert "another user's" in caplog.text


def test_one_in_the_study_is_made_as_the_study_is(tmp_path, monkeypatch):
    folder = tmp_path / "one" / "recipes"
    monkeypatch.setenv(environment.RECIPES, f"{folder},false,1024")
    environment.make_recipe_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode)
