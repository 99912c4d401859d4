"""A study's `study.json` made anew: from `sweep.yaml`, and what its trials say of overrides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sweep import provenance
from sweep.loading import loader
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.storage.url import masked, with_absolute_path
from trial.config import dotted
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord

NO_BASE = ("origin", "version", "packed", "keep_checkpoint")
"""Keys of a trial's configuration that no sweep file sets."""


def rebuilt_record(folder: StudyFolder, storage: str | None) -> StudyRecord:
    """The record of a study whose own is lost.

    An override (`--set`) of `base` is found again where all trials have its value. Those of other
    keys are not in any trial: the next `run` of the sweep file may give them again.

    Args:
        folder: The study.
        storage: URL of the storage it was started with; None for its journal.

    Raises:
        ConfigError: there is no sound `sweep.yaml`.
    """
    if not folder.sweep_file.exists():
        rule = "the sweep file of the study, under this name; then give the command again"
        raise ConfigError([Problem(str(folder.sweep_file), rule, "no file")])
    checked = loader.examine(folder.sweep_file)
    if checked.problems:
        raise ConfigError(checked.problems)
    configs = list(_configs(folder))
    names = {config.origin.study for config in configs if config.origin}
    spec = checked.spec.model_copy(update={"name": names.pop()} if len(names) == 1 else {})
    made = provenance.collect([])
    made |= {"storage": masked(with_absolute_path(storage)) if storage else None, "rebuilt": True}
    times = [path.stat().st_mtime for path in (folder.sweep_file, folder.path)]
    return StudyRecord(
        name=folder.name,
        created=min(times),
        spec=_with_overrides(spec, configs).content(),
        source=str(folder.sweep_file),
        provenance=made,
    )


def _configs(folder: StudyFolder) -> Iterator[TrialConfig]:
    """The configurations of the search that can be read."""
    for _, trial in folder.all_trials():
        try:
            config = trial.read_config()
        except (OSError, ValueError):
            continue
        if config.origin and config.origin.searched and not config.origin.changes:
            yield config


def _with_overrides(spec: SweepSpec, configs: Iterable[TrialConfig]) -> SweepSpec:
    """The spec, with each value of `base` that all trials have otherwise than it says."""
    space, found = Space.of(spec), []
    for config in configs:
        params = config.origin.params if config.origin else {}
        try:
            expected = space.configure(params)
        except (ConfigError, KeyError, ValueError):
            continue
        found.append(_differences(config, expected))
    if not found:
        return spec
    base: dict[str, Any] = spec.model_dump(mode="json")["base"]
    for key, value in found[0].items():
        if all(key in other and other[key] == value for other in found):
            dotted.set_value(base, key, value)
    return spec.model_copy(update={"base": base})


def _differences(config: TrialConfig, expected: TrialConfig) -> dict[str, Any]:
    here, there = (
        dotted.flatten(found.model_dump(mode="json", exclude=set(NO_BASE)))
        for found in (config, expected)
    )
    return {key: value for key, value in here.items() if there.get(key) != value}
