"""A sweep file on its way to a spec: plain values, where each key stands, what is wrong so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sweep.spec.spec import (
    BudgetSpec,
    ConfirmSpec,
    FailuresSpec,
    ObjectiveSpec,
    ResourceSpec,
    SamplerSpec,
    StopSpec,
    SweepSpec,
)
from trial import seed_config
from trial.config import yaml_file
from trial.config.errors import ConfigError, Problem, nearest, unknown
from trial.config.trial_config import SECTIONS, known_keys, known_paths

TOP = tuple(sorted({*SweepSpec.model_fields, "objective", "budget"}))
"""Keys a sweep file may have."""

CONFIG_SECTIONS = (*SECTIONS, "training")
"""Parts of a trial's configuration that are mappings of named keys."""

OTHER_WORDS = {
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lr": "training.learning_rate",
    "batch_size": "training.per_device_train_batch_size",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "zero": "zero_stage",
    "stage": "zero_stage",
    "model_id": "model.name_or_path",
    "model_name": "model.name_or_path",
}
"""What people say elsewhere, too far in spelling to be found by it."""

_LONGEST = 200


@dataclass(slots=True)
class RawSweep:
    """The values of a sweep file, dotted paths flattened under `space`, with overrides applied."""

    source: Path
    content: dict[str, Any]
    where: dict[str, str] = field(default_factory=dict)
    """Place of each key by dotted path: `spaces/x.yaml:14` or `--set a.b=c`."""
    problems: list[Problem] = field(default_factory=list)
    base_folder: Path | None = None
    """Folder of the file that `base` names."""

    def locate(self, key: str) -> str:
        """Where a key stands, or the nearest key around it."""
        while key and key not in self.where:
            key = key.rpartition(".")[0]
        return self.where.get(key, str(self.source))

    def refuse(self, problem: Problem, at: str = "") -> None:
        """Note a mistake, at `at` when that says more than its key."""
        got = problem.got if len(problem.got) <= _LONGEST else f"{problem.got[:_LONGEST]}..."
        place = problem.where or self.locate(at or problem.key)
        placed = replace(problem, where=place, got=got, near=_near(problem))
        if placed not in self.problems:
            self.problems.append(placed)

    def section(self, key: str) -> dict[str, Any]:
        """A top-level mapping; absent, blank or of another kind (which is noted): empty."""
        content = self.content.get(key)
        if content is None:
            return {}
        if not isinstance(content, dict):
            named = " or a name" if key in ("sampler", "pruner", "objective") else ""
            self.refuse(Problem(key, f"is a mapping{named}", repr(content)))
            self.content[key] = {}
            return {}
        return content

    def put(self, key: str, place: str) -> None:
        """Remember that `key` and all below it now come from `place`."""
        for old in [old for old in self.where if old.startswith(f"{key}.")]:
            del self.where[old]
        self.where[key] = place


def read(source: Path, overrides: Sequence[str]) -> RawSweep:
    """The sheet of a file with overrides laid over it; mistakes are noted in the sheet.

    Raises:
        ConfigError: the file cannot be read at all, or is no mapping.
    """
    found = yaml_file.read(source)
    if not isinstance(found.content, dict):
        rule = "a sweep file is a mapping (question, base, space, stop, ...)"
        got = "an empty file" if found.content is None else repr(found.content)[:_LONGEST]
        raise ConfigError([Problem("", rule, got, where=str(source))])
    where = {key: f"{source}:{line}" for key, line in found.lines.items() if key}
    sheet = RawSweep(source, found.content, where)
    for name in [name for name in sheet.content if name not in TOP]:
        sheet.refuse(_unknown_top(name))
        del sheet.content[name]
    for text in _base_first(overrides):
        if text.partition("=")[0].strip() != "base":
            break
        _override(sheet, text)
    _unfold(sheet)
    for text in overrides:
        if text.partition("=")[0].strip() != "base":
            _override(sheet, text)
    return sheet


def flatten(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted paths of a mapping in which sections may be nested: `lora: {r: ...}` is `lora.r`."""
    for name, value in content.items():
        if name in CONFIG_SECTIONS and isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def is_path(path: str) -> bool:
    """Whether a dotted path is a key of a trial's configuration, or lies below one."""
    return any(is_at_or_below(path, name) for name in known_paths())


def is_at_or_below(path: str, other: str) -> bool:
    """Whether a dotted path is another, or lies below it."""
    return path == other or path.startswith(f"{other}.")


def unknown_path(path: str, known: Sequence[str]) -> Problem:
    """The problem of a dotted path that is not in `known`."""
    near = nearest(path, known)
    begins = "" if near else f"; a path begins with {', '.join(known_keys()[''])}"
    return Problem(path, f"unknown key{begins}", repr(path), near)


def _near(problem: Problem) -> str:
    """The nearest name by meaning, before the nearest by spelling."""
    section, _, name = problem.key.rpartition(".")
    of_config = section.partition(".")[0] in ("", "base", "space", "enqueue")
    if problem.expected.startswith("unknown") and of_config:
        return OTHER_WORDS.get(name, problem.near)
    return problem.near


def _unknown_top(name: str) -> Problem:
    """An unknown top-level key: often one that belongs a level deeper."""
    deeper = next((key for key in _settable() if key.rpartition(".")[2] == name), "")
    if name in known_keys()[""] or is_path(deeper):
        deeper = f"base.{deeper or name}"
    problem = unknown(name, TOP)
    return replace(problem, near=deeper or problem.near)


def _settable() -> list[str]:
    """Every dotted key that `--set` can change, for suggestions."""
    models: dict[str, type[BaseModel]] = {
        "stop": StopSpec,
        "resources": ResourceSpec,
        "failures": FailuresSpec,
        "confirm": ConfirmSpec,
        "budget": BudgetSpec,
        "sampler": SamplerSpec,
        "objective": ObjectiveSpec,
    }
    fields = [f"{key}.{name}" for key, model in models.items() for name in model.model_fields]
    return [*TOP, "pruner.name", *fields, *known_paths()]


def _base_first(overrides: Sequence[str]) -> list[str]:
    return sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "base")


def _unfold(sheet: RawSweep) -> None:
    """Bring the short forms into their long ones."""
    for name in ("sampler", "pruner", "objective"):
        word = sheet.content.get(name)
        if isinstance(word, str):
            sheet.content[name] = {("metric" if name == "objective" else "name"): word}
    if isinstance(sheet.content.get("base"), str):
        _read_base(sheet, sheet.content["base"])
    for name in ("space", "variables"):
        _unfold_dimensions(sheet, name)


def _unfold_dimensions(sheet: RawSweep, name: str) -> None:
    flat: dict[str, Any] = {}
    for path, value in flatten(sheet.section(name)):
        if path in flat:
            sheet.refuse(Problem(f"{name}.{path}", "stands twice, dotted and nested"))
        flat[path] = value
    sheet.content[name] = flat


def _read_base(sheet: RawSweep, name: str) -> None:
    """Put the content of the file that `base` names in its place."""
    sheet.content["base"] = {}
    candidates = [sheet.source.parent / name, Path(name)]
    if sheet.locate("base").startswith("--set"):
        candidates.reverse()
    path = next((path for path in candidates if _exists(path)), None)
    if path is None:
        sheet.refuse(Problem("base", "names a file beside the sweep file or here", repr(name)))
        return
    try:
        found = yaml_file.read(path)
    except ConfigError as error:
        for problem in error.problems:
            sheet.refuse(problem)
        return
    if not isinstance(found.content, dict):
        sheet.refuse(Problem("", "a base is a mapping of a trial's keys", where=str(path)))
        return
    sheet.content["base"], sheet.base_folder = found.content, path.parent
    sheet.where |= {f"base.{key}": f"{path}:{line}" for key, line in found.lines.items() if key}
    if seed_config.is_seed_config(found.content):
        _take_seed(sheet, seed_config.translate(found.content, path.parent))


def _take_seed(sheet: RawSweep, found: seed_config.Translation) -> None:
    """A base in the seed's names, in ours; each key stands where its other name does."""
    for problem in found.problems:
        sheet.refuse(replace(problem, key=f"base.{problem.key}".rstrip(".")))
    sheet.content["base"] = found.content
    sheet.where |= {f"base.{path}": sheet.locate(f"base.{name}") for path, name in
                    found.seed_names.items()}  # fmt: skip


def _override(sheet: RawSweep, text: str) -> None:
    """Apply one `key=value`."""
    place = f"--set {text}"
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        sheet.refuse(Problem("", "an override is `key=value`", where=place))
        return
    try:
        value = yaml_file.parse(raw, place).content
    except ConfigError as error:
        for problem in error.problems:
            sheet.refuse(Problem(key, problem.expected, problem.got, where=place))
        return
    top = key.split(".")[0]
    if top in ("space", "variables") and key != top:
        _override_dimension(sheet, top, key.partition(".")[2], value, place)
    elif top in TOP and top != "base":
        _set(sheet, key, value, place)
        if key in ("space", "variables"):
            _unfold_dimensions(sheet, key)
    else:
        _override_base(sheet, key.removeprefix("base."), value, place)


def _override_base(sheet: RawSweep, path: str, value: Any, place: str) -> None:
    if path == "base":
        sheet.content["base"] = value
        sheet.put("base", place)
        return
    if path in CONFIG_SECTIONS and isinstance(value, dict):
        for inner, part in flatten({path: value}):
            _override_base(sheet, inner, part, place)
        return
    if not is_path(path):
        sheet.refuse(replace(unknown_path(path, _settable()), where=place))
        return
    taken = next((name for name in sheet.section("space") if is_at_or_below(path, name)), None)
    if taken and not _all_conditional(sheet.content["space"][taken]):
        rule = f"is searched by this sweep; say `--set space.{taken}=...` to fix it"
        sheet.refuse(Problem(path, rule, where=place))
        return
    sheet.section("base")
    _set(sheet, f"base.{path}", value, place)


def _all_conditional(raw: Any) -> bool:
    branches = raw if isinstance(raw, list) else [raw]
    return bool(branches) and all(isinstance(b, dict) and "when" in b for b in branches)


def _override_dimension(sheet: RawSweep, top: str, path: str, value: Any, place: str) -> None:
    """Set a whole dimension, or one key of an existing one (`space.lora.r.high=64`)."""
    dimensions = sheet.section(top)
    sheet.content[top] = dimensions
    inside = next((name for name in dimensions if path.startswith(f"{name}.")), None)
    if inside and isinstance(dimensions[inside], dict):
        dimensions[inside] = {**dimensions[inside], path.removeprefix(f"{inside}."): value}
    elif inside:
        rule = f"{inside} is not a mapping here: set `{top}.{inside}` as a whole"
        sheet.refuse(Problem(f"{top}.{path}", rule, where=place))
        return
    else:
        dimensions.update(flatten({path: value}))
    sheet.put(f"{top}.{path}", place)


def _set(sheet: RawSweep, key: str, value: Any, place: str) -> None:
    """Set a dotted key, making the mappings on its way."""
    parts = key.split(".")
    content: dict[str, Any] = sheet.content
    for part in parts[:-1]:
        inner = content.get(part)
        if inner is None:
            inner = content[part] = {}
        if not isinstance(inner, dict):
            sheet.refuse(Problem(key, f"{part} is not a mapping", repr(inner), where=place))
            return
        content = inner
    short = len(parts) == 1 and isinstance(value, str)
    if short and key in ("sampler", "pruner", "objective"):
        value = {("metric" if key == "objective" else "name"): value}
    content[parts[-1]] = value
    sheet.put(key, place)


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
