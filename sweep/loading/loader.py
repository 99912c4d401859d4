"""From a sweep file to a spec: `load(Path("spaces/lora_rank.yaml"), ["training.max_steps=50"])`.

Every mistake is found before anything starts, all of them at once, each with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweep.loading import sections
from sweep.loading.cross_checks import cross_check
from sweep.loading.keys import SHORT_FORMS, TOP_LEVEL, unknown_top_level
from sweep.loading.overrides import (
    apply_overrides,
    expand_short_form,
    flatten_dimensions,
    is_base_override,
)
from sweep.loading.paths import make_paths_absolute
from sweep.loading.raw_sweep import LONGEST_VALUE, RawSweep, in_file_order
from sweep.loading.secret_scan import refuse_secrets
from sweep.loading.space_checks import path_problem, variable_problem
from sweep.spec.dimension import Dimension
from sweep.spec.dimension_parser import parse_dimension
from sweep.spec.rungs import evaluated_at_rungs
from sweep.spec.spec import SweepSpec
from trial import seed_config
from trial.config import yaml_file
from trial.config.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class CheckedSweep:
    """A sweep file as it was understood, and what is wrong with it."""

    raw: RawSweep
    spec: SweepSpec
    """Keys with a problem have their defaults."""

    @property
    def problems(self) -> list[Problem]:
        """Everything that is wrong with the file and the overrides, in the order of the lines."""
        return in_file_order(self.raw.problems)

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """Problems of a trial's configuration, each with the key and line its value came from."""
        return [self._locate(problem) for problem in problems]

    def _locate(self, problem: Problem) -> Problem:
        """A problem with the sweep file's key: under `space`, else under `base`."""
        locate = self.raw.locate
        if problem.where or problem.key.startswith("resources."):
            return replace(problem, where=problem.where or locate(problem.key))
        searched = f"space.{problem.key}"
        key = searched if locate(searched) != locate("space") else f"base.{problem.key}"
        return replace(problem, key=key, where=locate(key))


def load(source: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """The checked sweep of a file.

    Args:
        source: The sweep file.
        overrides: `key=value` each, laid over the file's values.

    Raises:
        ConfigError: Every mistake at once, each with its file and line or its override.
    """
    checked = examine(source, overrides)
    if problems := checked.problems:
        raise ConfigError(problems)
    return checked.spec


def examine(source: Path, overrides: Sequence[str] = ()) -> CheckedSweep:
    """Read a sweep file and check it; what is wrong is in the result.

    Raises:
        ConfigError: It cannot be read at all.
    """
    raw = read(Path(source), overrides)
    raw.refuse_crowded()
    refuse_secrets(raw)
    make_paths_absolute(raw)
    objectives = sections.read_objectives(raw)
    sampler = sections.read_sampler(raw, objectives)
    spec = SweepSpec(
        name=sections.read_name(raw),
        question=sections.read_question(raw),
        base={key: value for key, value in raw.section("base").items() if key != "origin"},
        space=_read_dimensions(raw, "space"),
        variables=_read_dimensions(raw, "variables"),
        objectives=objectives,
        sampler=sampler,
        pruner=sections.read_pruner(raw, objectives, sampler),
        enqueue=sections.read_enqueued(raw),
        warm_start=sections.read_warm_start(raw),
        stop=sections.read_stop(raw),
        resources=sections.read_resources(raw),
        confirm=sections.read_confirm(raw),
        failures=sections.read_failures(raw),
    )
    cross_check(raw, spec)
    return CheckedSweep(raw, spec if raw.problems else evaluated_at_rungs(spec))


def read(source: Path, overrides: Sequence[str]) -> RawSweep:
    """The plain values of a sweep file with overrides laid over them.

    Raises:
        ConfigError: The file cannot be read at all, or is no mapping.
    """
    document = yaml_file.read(source)
    if not isinstance(document.content, dict):
        rule = "a sweep file is a mapping (question, base, space, stop, ...)"
        empty = document.content is None
        got = "an empty file" if empty else repr(document.content)[:LONGEST_VALUE]
        raise ConfigError([Problem("", rule, got, where=str(source))])
    locations = {key: f"{source}:{line}" for key, line in document.lines.items() if key}
    raw = RawSweep(source, document.content, locations)
    for name in [name for name in raw.content if name not in TOP_LEVEL]:
        raw.add_problem(unknown_top_level(name))
        del raw.content[name]
    # The other overrides change the content of the base that these name.
    apply_overrides(raw, [text for text in overrides if is_base_override(text)])
    for name in SHORT_FORMS:
        if name in raw.content:
            raw.content[name] = expand_short_form(name, raw.content[name])
    if isinstance(named := raw.content.get("base"), str):
        _read_base(raw, named)
    for name in ("space", "variables"):
        flatten_dimensions(raw, name)
    apply_overrides(raw, [text for text in overrides if not is_base_override(text)])
    return raw


def _read_base(raw: RawSweep, name: str) -> None:
    """Put the content of the file that `base` names in its place."""
    raw.content["base"] = {}
    candidates = [raw.source.parent / name, Path(name)]
    if raw.locate("base").startswith("--set"):
        candidates.reverse()
    path = next((path for path in candidates if _is_file(path)), None)
    if path is None:
        rule = "names a file beside the sweep file or here"
        raw.add_problem(Problem("base", rule, repr(name)))
        return
    try:
        document = yaml_file.read(path)
    except ConfigError as error:
        raw.add_problems(error.problems)
        return
    if not isinstance(document.content, dict):
        raw.add_problem(Problem("", "a base is a mapping of a trial's keys", where=str(path)))
        return
    raw.content["base"], raw.base_folder = document.content, path.parent
    raw.locations |= {f"base.{k}": f"{path}:{line}" for k, line in document.lines.items() if k}
    if seed_config.is_seed_config(document.content):
        _use_seed_config(raw, seed_config.translate(document.content, path.parent))


def _use_seed_config(raw: RawSweep, translated: seed_config.Translation) -> None:
    """Use a translated file of the seed repository as base; a key has the line of its original."""
    for problem in translated.problems:
        raw.add_problem(replace(problem, key=f"base.{problem.key}".rstrip(".")))
    raw.content["base"] = translated.content
    raw.locations |= {
        f"base.{path}": raw.locate(f"base.{name}") for path, name in translated.seed_names.items()
    }


def _read_dimensions(raw: RawSweep, section: str) -> dict[str, Dimension]:
    """The dimensions of `space` or `variables`; those with a problem are left out."""
    find_problem = path_problem if section == "space" else variable_problem
    dimensions: dict[str, Dimension] = {}
    content = raw.section(section)
    for name in content:
        if (problem := find_problem(name)) is not None:
            raw.add_problem(replace(problem, key=f"{section}.{name}"))
            continue
        try:
            dimensions[name] = parse_dimension(content[name], f"{section}.{name}")
        except ConfigError as error:
            raw.add_problems(error.problems)
    return dimensions


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
