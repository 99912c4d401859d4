"""What `check` refuses a worker refuses, and what it accepts a worker trains, over all worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broken_worlds.make_worlds import WORLDS
from broken_worlds.material import Material

from trial.config.trial_config import TrialConfig, validate
from trial.preflight.checks import preflight
from trial.preload import finish_imports
from trial.rehearsal.rehearse import Rehearsal
from trial.store.folders import TrialFolder
from trial.train import train
from trial.training.process_cache import ProcessCache


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    # Tokens of other runs must not stand in for those that are to be made here.
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield Material(tmp_path_factory.mktemp("worlds"))
    patch.undo()


def checked(content: dict[str, Any]) -> list[str]:
    """The problems of a configuration as `gaudi-sweep check` finds them, in the same order."""
    config, problems = validate(content)
    if config is not None:
        problems = preflight(config) or Rehearsal("cpu").problems([config])
    return list(problems)


def trained(content: dict[str, Any], folder: Path) -> str:
    """Train as a worker does, without any check before; returns why it failed, "" if it did not."""
    try:
        config = TrialConfig.model_validate(content)
    except ValueError as error:
        return str(error)
    result = train(TrialFolder.create(folder, config), None, ProcessCache(finish_imports))
    if result.state == "failed":
        # A schedule is asked for the next rate at the end of a step, here of the only one.
        assert (
            not result.cause.step or "PLATEAU" in str(config.training["lr_scheduler_type"]).upper()
        )
        return result.cause.message
    assert (result.state, result.steps) == ("complete", 1)
    return ""


@pytest.mark.parametrize("name", WORLDS)
def test_check_refuses_what_a_worker_refuses_and_nothing_else(material, tmp_path, name):
    world = WORLDS[name]
    content = material.content(name, world)
    problems = checked(content)
    failure = trained(content, tmp_path / "trial")
    assert bool(problems) == (bool(failure) or world.idle), (problems, failure)
    assert [problem.key for problem in problems][:1] == ([world.refused] if world.refused else [])


def test_there_are_many_worlds_broken_and_sound():
    broken = sum(bool(world.refused) for world in WORLDS.values())
    assert broken >= 50
    assert len(WORLDS) - broken >= 30


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("checkpointing", "checkpointing of a model that cannot"),
        ("eva", "eva of more components than tokens"),
        ("mixtral", "mixtral with the router's loss by no number"),
    ],
)
def test_what_depends_on_two_sections_is_found_in_a_later_trial_too(material, first, second):
    configs = []
    for name in (first, second):
        config, problems = validate(material.content(f"later {name}", WORLDS[name]))
        assert problems == []
        configs.append(config)
    rehearsal = Rehearsal("cpu")
    assert rehearsal.problems(configs[:1]) == []
    assert [problem.key for problem in rehearsal.problems(configs)] == [WORLDS[second].refused]
