"""Trains a finished trial for longer: a new trial that resumes from its last checkpoint.

The finished trial keeps its number, its result and its adapter; the longer one gets a number of its
own, and the study has both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from sweep.study.decider import OptunaDecider
from sweep.study.proposed import renumbered
from trial.config import yaml_file
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig, parse
from trial.store.files import sync_tree
from trial.store.folders import StudyFolder, TrialFolder
from trial.training.checkpoints import Checkpoints


def extend_trial(
    study: StudyFolder, decider: OptunaDecider, number: int, overrides: Sequence[str]
) -> int:
    """Create the longer trial in flight, for the driver to resume; returns its number.

    When an interrupted command has created it already, it is not created twice.

    Raises:
        ConfigError: the trial cannot go on, or the overrides do not make it longer.
    """
    source = study.trial(number)
    _refuse_unfinished(source, number)
    config = _longer(source, number, overrides)
    for other, existing in decider.extensions(number).items():
        if existing.fingerprint() == config.fingerprint():
            if study.trial(other).result.exists():
                raise _refuse(f"another length: trial {other} is trial {number} trained that long")
            return other
    if not source.checkpoints.exists():
        rule = "resources.keep_checkpoints says how many of the best keep theirs"
        raise _refuse(f"a trial that has its last checkpoint, trial {number} has not: {rule}")
    whole, damaged = Checkpoints(source).newest_whole()
    if whole is None or damaged:
        wrong = damaged[0] if damaged else "it was not written to its end"
        raise _refuse(f"a trial whose last checkpoint is whole; that of trial {number}: {wrong}")
    new = decider.add_extension(number, config)
    _copy(source, study.trial(new), renumbered(config, new))
    return new


def finish_extensions(study: StudyFolder, decider: OptunaDecider) -> None:
    """Create the folders of longer trials that a kill has left with a number and without one.

    A trial whose own checkpoints are damaged gets those of the trial that it continues once more.
    """
    for proposal in decider.pending():
        origin = proposal.config.origin if proposal.config else None
        if proposal.config and origin and origin.continues is not None:
            source, folder = study.trial(origin.continues), study.trial(proposal.number)
            is_ready = folder.config.exists() and (
                folder.result.exists() or Checkpoints(folder).newest_whole().checkpoint
            )
            if not is_ready and Checkpoints(source).newest_whole().checkpoint:
                _copy(source, folder, proposal.config)


def _copy(source: TrialFolder, folder: TrialFolder, config: TrialConfig) -> None:
    """Copy checkpoints and metrics, and last the configuration: it marks a whole copy."""
    folder.path.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    shutil.copytree(source.checkpoints, folder.checkpoints)
    sync_tree(folder.checkpoints)
    if source.metrics.exists():
        shutil.copy(source.metrics, folder.metrics)
    TrialFolder.create(folder.path, config)


def _refuse_unfinished(source: TrialFolder, number: int) -> None:
    result = source.read_result() if source.result.exists() else None
    if result is None or result.state != "complete":
        state = result.state if result else "not finished"
        raise _refuse(f"a complete trial; trial {number} is {state}")


def _longer(source: TrialFolder, number: int, overrides: Sequence[str]) -> TrialConfig:
    """The finished trial's configuration with the overrides."""
    old = source.read_config()
    content = old.model_dump(mode="json")
    for text in overrides:
        key, _, value = text.partition("=")
        section, _, name = key.strip().partition(".")
        if section != "training" or not name:
            raise ConfigError([Problem(key, "only training.* can change when a trial goes on")])
        content["training"][name] = yaml_file.parse(value, f"--set {text}").content
    content["origin"]["continues"] = number
    config = parse(content)
    if _length(config) <= _length(old):
        rule = "more training.max_steps or training.num_train_epochs than before"
        raise ConfigError([Problem("--set", rule, ", ".join(overrides) or "nothing")])
    return config


def _refuse(rule: str) -> ConfigError:
    return ConfigError([Problem("--continue", rule)])


def _length(config: TrialConfig) -> tuple[float, float]:
    """Optimizer steps, and epochs where no steps are given."""
    training = config.training
    steps = float(training["max_steps"])
    return (steps, 0.0) if steps > 0 else (0.0, float(training["num_train_epochs"]))
