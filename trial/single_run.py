"""One run without a sweep: a configuration file checked, and the folder that its run lives in.

    single = read(Path("config/finetune_lora.yaml"))     # in the seed's names, or in our own
    folder = open_folder(single, world_size=8)           # what `python -m trial FOLDER` trains

Torch-free. The same file leads to the same folder again: an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trial import seed_config
from trial.config import dotted, yaml_file
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.paths import PATH_KEYS, resolve
from trial.config.trial_config import TrialConfig, known_paths, validate
from trial.preflight.checks import preflight, rank_problems
from trial.store.folders import TrialFolder

RUNS = Path("runs/single")
"""Where a run lives whose file names no folder."""

_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Single:
    """A checked configuration and where its run is to live."""

    source: Path
    config: TrialConfig
    folder: TrialFolder


@dataclass(slots=True)
class _Draft:
    """A file on its way to a configuration."""

    source: Path
    given: seed_config.Translation
    where: dict[str, str]
    """Place of each key of the file, and of each override, by dotted path."""
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, problem: Problem) -> None:
        """Note a mistake in a key of ours, under the name that the file gives it."""
        path, rest = problem.key, ""
        while path and path not in self.given.said and path not in self.where:
            path, _, last = path.rpartition(".")
            rest = f".{last}{rest}"
        name = self.given.said.get(path, path)
        key = f"{name}{rest}".strip(".") or problem.key
        got = problem.got if len(problem.got) <= _LONGEST else f"{problem.got[:_LONGEST]}..."
        place = problem.where or self.where.get(name, str(self.source))
        self.problems.append(replace(problem, key=key, where=place, got=got, near=_near(problem)))


def read(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    deepspeed: bool = False,
    world_size: int = 1,
) -> Single:
    """The configuration of a file, checked down to its model, its data and its device.

    `deepspeed` says that a DeepSpeed trial is expected. The run lives in `run_dir`, else in the
    file's `save_dir`, else in `runs/single/` under the file's name.

    Raises:
        ConfigError: every mistake at once, each with its file and line or its override.
    """
    draft = _draft(source)
    for text in overrides:
        _override(draft, text)
    _make_absolute(draft)
    config, problems = validate(draft.given.content)
    for problem in problems:
        draft.refuse(problem)
    if config is not None and not draft.problems:
        for problem in (*preflight(config), *_launch_problems(config, deepspeed, world_size)):
            draft.refuse(problem)
    if config is None or draft.problems:
        raise ConfigError(dict.fromkeys(draft.problems))
    named = Path(draft.given.save_dir).expanduser() if draft.given.save_dir else RUNS / source.stem
    return Single(source, config, TrialFolder(run_dir or named))


def open_folder(single: Single, world_size: int = 1) -> TrialFolder:
    """The run's folder, made or found again; a failed run is set aside and starts anew.

    Raises:
        ConfigError: the folder holds another run, or one that other ranks have begun.
    """
    folder = single.folder
    if not folder.config.exists():
        return TrialFolder.create(folder.path, single.config)
    try:
        found, result = folder.read_config(), folder.read_result()
    except (OSError, ValueError) as error:
        rule = "is no run's: say another with --run-dir"
        raise ConfigError([Problem("", rule, str(error), where=str(folder.path))]) from error
    if found.fingerprint() != single.config.fingerprint():
        raise ConfigError(_differences(folder, found, single.config))
    attempts = folder.read_attempts()
    if result is None and attempts and attempts[-1].devices != world_size:
        rule = f"goes on with the {attempts[-1].devices} ranks it was started with"
        raise ConfigError([Problem("--world-size", rule, str(world_size), where=str(folder.path))])
    if result is not None and result.state == "failed":
        folder.move_result_to_failures()
    return folder


def _draft(source: Path) -> _Draft:
    found = yaml_file.read(source)
    if not isinstance(found.content, dict):
        rule = "a configuration is a mapping of a trial's keys"
        got = "an empty file" if found.content is None else repr(found.content)[:_LONGEST]
        raise ConfigError([Problem("", rule, got, where=str(source))])
    where = {key: f"{source}:{line}" for key, line in found.lines.items() if key}
    if not seed_config.is_seed(found.content):
        return _Draft(source, seed_config.Translation(found.content), where)
    draft = _Draft(source, seed_config.translate(found.content, source.parent), where)
    for problem in draft.given.problems:
        place = problem.where or where.get(problem.key, str(source))
        draft.problems.append(replace(problem, where=place))
    draft.given.problems.clear()
    return draft


def _override(draft: _Draft, text: str) -> None:
    """Apply one `key=value`; the key is ours or the seed's."""
    place = f"--set {text}"
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals or not key:
        draft.problems.append(Problem("", "an override is `key=value`", where=place))
        return
    try:
        value = yaml_file.parse(raw, place).content
    except ConfigError as error:
        draft.problems += [replace(problem, key=key) for problem in error.problems]
        return
    draft.where[key] = place
    if key in seed_config.NAMES:
        draft.given.put(key, value)
        draft.problems += [replace(problem, where=place) for problem in draft.given.problems]
        draft.given.problems.clear()
        return
    draft.given.said.pop(key, None)
    try:
        dotted.set_value(draft.given.content, key, value)
    except dotted.NotAMapping:
        draft.problems.append(Problem(key, "lies in what is not a mapping", where=place))


def _make_absolute(draft: _Draft) -> None:
    """Files are looked for beside the configuration, else from here."""
    for place in PATH_KEYS:
        section, _, key = place.partition(".")
        content = draft.given.content.get(section)
        if isinstance(content, dict) and key in content:
            folders = [draft.source.parent, Path()]
            if draft.where.get(draft.given.said.get(place, place), "").startswith("--set"):
                folders.reverse()
            content[key], problem = resolve(place, content[key], folders)
            if problem is not None:
                draft.refuse(problem)


def _launch_problems(config: TrialConfig, deepspeed: bool, size: int) -> Iterator[Problem]:
    if deepspeed and config.zero_stage is None:
        file = seed_config.DS_CONFIG
        rule = f"needs a stage: {file} beside the file, or `zero_stage` (0, 1, 2 or 3)"
        yield Problem("--use-deepspeed", rule, near="--set zero_stage=1", where="command line")
    yield from rank_problems(config, size)


def _near(problem: Problem) -> str:
    """Where an unknown key's meaning lies, before what is spelt like it."""
    if not problem.expected.startswith("unknown"):
        return problem.near
    paths = seed_config.NAMES.get(problem.key.rpartition(".")[2], ())
    return next(iter(paths), problem.near or nearest(problem.key, known_paths()))


def _differences(folder: TrialFolder, old: TrialConfig, new: TrialConfig) -> list[Problem]:
    """What keeps a run from going on in a folder."""
    before, after = _as_json(old), _as_json(new)
    place = str(folder.config)
    problems = [
        Problem(key, f"was {before.get(key, 'absent')}", after.get(key, "absent"), where=place)
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    rule = "holds a run with other settings: say another folder with --run-dir"
    return [*problems, Problem("", rule, where=str(folder.path))]


def _as_json(config: TrialConfig) -> dict[str, str]:
    """The values of a configuration as JSON text by dotted path; empty mappings left out."""
    flat = dotted.flatten(config.model_dump(mode="json"))
    return {path: json.dumps(value) for path, value in flat.items() if value != {}}
