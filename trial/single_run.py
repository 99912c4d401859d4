"""One run without a sweep: checks a configuration file and opens the folder of its run.

    single = read(Path("config/finetune_lora.yaml"))     # in the seed repository's keys, or in ours
    folder = open_folder(single, world_size=8)           # what `python -m trial FOLDER` trains

Torch-free. The same file leads to the same folder, so that an interrupted run is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trial import seed_config
from trial.config import dotted, earlier, yaml_file
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.paths import PATH_KEYS, resolve
from trial.config.trial_config import TrialConfig, known_paths, validate
from trial.preflight.checks import preflight, rank_problems
from trial.store.folders import TrialFolder

RUNS = Path("runs/single")
"""Parent of the folder of a run whose file names none."""

_MAX_VALUE_TEXT = 200
"""Characters of a value in a message."""


@dataclass(frozen=True, slots=True)
class SingleRun:
    """A checked configuration and the folder of its run."""

    source: Path
    config: TrialConfig
    folder: TrialFolder


@dataclass(slots=True)
class _Draft:
    """A file that is being read: its content, the lines of its keys, and its mistakes."""

    source: Path
    file: seed_config.Translation
    """Content of the file in our keys."""
    where: dict[str, str]
    """Dotted path -> file and line of a key, or the override that set it."""
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, problem: Problem) -> None:
        """Add a mistake in one of our keys, under the key that the file uses for it."""
        path, rest = problem.key, ""
        while path and path not in self.file.seed_names and path not in self.where:
            path, _, last = path.rpartition(".")
            rest = f".{last}{rest}"
        name = self.file.seed_names.get(path, path)
        key = f"{name}{rest}".strip(".") or problem.key
        got = problem.got
        if len(got) > _MAX_VALUE_TEXT:
            got = f"{got[:_MAX_VALUE_TEXT]}..."
        place = problem.where or self.where.get(name, str(self.source))
        self.problems.append(replace(problem, key=key, where=place, got=got, near=_near(problem)))


def read(
    source: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    deepspeed: bool = False,
    world_size: int = 1,
    here: bool = True,
) -> SingleRun:
    """Read a file and check its configuration, including model, data and device.

    Args:
        source: YAML file, in our keys or in the seed repository's.
        overrides: `key=value` texts.
        run_dir: folder of the run; default: the file's `save_dir`, else `runs/single/` and the
            file's name.
        deepspeed: refuse a configuration that does not use DeepSpeed.
        world_size: number of ranks.
        here: whether it is to run on this machine; else devices and packages are not looked for.

    Raises:
        ConfigError: every mistake at once, each with its file and line or its override.
    """
    draft = _draft(source)
    for text in overrides:
        _override(draft, text)
    _make_absolute(draft)
    config, problems = validate(draft.file.content)
    for problem in problems:
        draft.refuse(problem)
    if config is not None and not draft.problems:
        found = preflight(config, here=here)
        for problem in (*found, *_launch_problems(config, deepspeed, world_size)):
            draft.refuse(problem)
    if config is None or draft.problems:
        raise ConfigError(dict.fromkeys(draft.problems))
    named = Path(draft.file.save_dir).expanduser() if draft.file.save_dir else RUNS / source.stem
    return SingleRun(source, config, TrialFolder(run_dir or named))


def open_folder(single: SingleRun, world_size: int = 1) -> TrialFolder:
    """Create or reopen the run's folder; the result of a failed run is set aside to start anew.

    Raises:
        ConfigError: the folder holds another run, or one started with another number of ranks.
    """
    folder = single.folder
    if not folder.config.exists():
        return TrialFolder.create(folder.path, single.config)
    try:
        existing, result = folder.read_config(), folder.read_result()
    except (OSError, ValueError) as error:
        rule = "is no run's: say another with --run-dir"
        raise ConfigError([Problem("", rule, str(error), where=str(folder.path))]) from error
    config = _with_stored_data(single.config, existing)
    if existing.fingerprint() != config.fingerprint():
        raise ConfigError(_differences(folder, existing, single.config))
    attempts = folder.read_attempts()
    if result is None and attempts and attempts[-1].devices != world_size:
        rule = f"goes on with the {attempts[-1].devices} ranks it was started with"
        raise ConfigError([Problem("--world-size", rule, str(world_size), where=str(folder.path))])
    if result is not None and result.state == "failed":
        folder.move_result_to_failures()
    return folder


def _with_stored_data(config: TrialConfig, existing: TrialConfig) -> TrialConfig:
    """The configuration with the earlier defaults of a run that an earlier version started."""
    given = config.data.model_fields_set
    if existing.data.tokenize != earlier.DATA["tokenize"] or given & set(earlier.DATA):
        return config
    return config.model_copy(update={"data": config.data.model_copy(update=earlier.DATA)})


def _draft(source: Path) -> _Draft:
    document = yaml_file.read(source)
    if not isinstance(document.content, dict):
        rule = "a configuration is a mapping of a trial's keys"
        got = (
            "an empty file"
            if document.content is None
            else repr(document.content)[:_MAX_VALUE_TEXT]
        )
        raise ConfigError([Problem("", rule, got, where=str(source))])
    where = {key: f"{source}:{line}" for key, line in document.lines.items() if key}
    if not seed_config.is_seed_config(document.content):
        return _Draft(source, seed_config.Translation(document.content), where)
    draft = _Draft(source, seed_config.translate(document.content, source.parent), where)
    for problem in draft.file.problems:
        place = problem.where or where.get(problem.key, str(source))
        draft.problems.append(replace(problem, where=place))
    draft.file.problems.clear()
    return draft


def _override(draft: _Draft, text: str) -> None:
    """Apply one `key=value`; the key is ours or the seed repository's."""
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
        draft.file.set_value(key, value)
        draft.problems += [replace(problem, where=place) for problem in draft.file.problems]
        draft.file.problems.clear()
        return
    draft.file.seed_names.pop(key, None)
    try:
        dotted.set_value(draft.file.content, key, value)
    except dotted.NotAMapping:
        draft.problems.append(Problem(key, "lies in what is not a mapping", where=place))


def _make_absolute(draft: _Draft) -> None:
    """Resolve file paths: beside the configuration file, else in the working directory.

    For an override it is the other way round.
    """
    for place in PATH_KEYS:
        section, _, key = place.partition(".")
        content = draft.file.content.get(section)
        if isinstance(content, dict) and key in content:
            folders = [draft.source.parent, Path()]
            if draft.where.get(draft.file.seed_names.get(place, place), "").startswith("--set"):
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
    """What an unknown key may mean: our path for the seed's key, else the key most like it."""
    if not problem.expected.startswith("unknown"):
        return problem.near
    paths = seed_config.NAMES.get(problem.key.rpartition(".")[2], ())
    return next(iter(paths), problem.near or nearest(problem.key, known_paths()))


def _differences(folder: TrialFolder, old: TrialConfig, new: TrialConfig) -> list[Problem]:
    """The settings in which a run differs from the one in its folder."""
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
