"""Overrides of a sweep file: `--set training.max_steps=50`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sweep.loading.keys import (
    CONFIG_SECTIONS,
    SHORT_FORMS,
    TOP_LEVEL,
    config_section,
    is_at_or_below,
    is_config_path,
    settable_keys,
    unknown_path,
)
from sweep.loading.raw_sweep import RawSweep
from trial.config import yaml_file
from trial.config.dotted import NotAMapping, pairs, set_value
from trial.config.errors import ConfigError, Problem


def apply_overrides(raw: RawSweep, overrides: Sequence[str]) -> None:
    """Apply overrides (`key=value`) in their order, and note what is wrong with them."""
    for text in overrides:
        _apply(raw, text)


def is_base_override(text: str) -> bool:
    """Whether an override names another `base` as a whole."""
    return text.partition("=")[0].strip() == "base"


def flatten_dimensions(raw: RawSweep, name: str) -> None:
    """Bring `space` or `variables` to one level of dotted paths: `lora: {r: ...}` is `lora.r`."""
    flat: dict[str, Any] = {}
    for path, value in pairs(raw.section(name), descend=config_section):
        if path in flat:
            raw.add_problem(Problem(f"{name}.{path}", "stands twice, dotted and nested"))
        flat[path] = value
    raw.content[name] = flat


def expand_short_form(key: str, value: Any) -> Any:
    """A top-level value in full: `tpe` under `sampler` is `{name: tpe}`."""
    return {SHORT_FORMS[key]: value} if key in SHORT_FORMS and isinstance(value, str) else value


def _apply(raw: RawSweep, text: str) -> None:
    location = f"--set {text}"
    key, equals, given = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raw.add_problem(Problem("", "an override is `key=value`", where=location))
        return
    try:
        value = yaml_file.parse(given, location).content
    except ConfigError as error:
        for problem in error.problems:
            raw.add_problem(Problem(key, problem.expected, problem.got, where=location))
        return
    top, _, below = key.partition(".")
    if top in ("space", "variables") and below:
        _set_dimension(raw, top, below, value, location)
    elif top in TOP_LEVEL and top != "base":
        _set(raw, key, expand_short_form(key, value), location)
        if key in ("space", "variables"):
            flatten_dimensions(raw, key)
    else:
        _set_in_base(raw, key.removeprefix("base."), value, location)


def _set_in_base(raw: RawSweep, path: str, value: Any, location: str) -> None:
    if path == "base":
        raw.content["base"] = value
        raw.set_location("base", location)
        return
    if path in CONFIG_SECTIONS and isinstance(value, dict):
        for inner, part in pairs({path: value}, descend=config_section):
            _set_in_base(raw, inner, part, location)
        return
    if not is_config_path(path):
        raw.add_problem(replace(unknown_path(path, settable_keys()), where=location))
        return
    searched = next((name for name in raw.section("space") if is_at_or_below(path, name)), None)
    if searched and not _is_conditional(raw.content["space"][searched]):
        rule = f"is searched by this sweep; say `--set space.{searched}=...` to fix it"
        raw.add_problem(Problem(path, rule, where=location))
        return
    base = raw.section("base")
    if path == "zero_stage" and value is None:
        # Without DeepSpeed its settings in the file mean nothing.
        for name in [name for name in base if is_at_or_below(name, "deepspeed")]:
            del base[name]
    _set(raw, f"base.{path}", value, location)


def _is_conditional(dimension: Any) -> bool:
    """Whether every branch has a condition, so that the base's value may apply."""
    branches = dimension if isinstance(dimension, list) else [dimension]
    return bool(branches) and all(isinstance(b, dict) and "when" in b for b in branches)


def _set_dimension(raw: RawSweep, top: str, path: str, value: Any, location: str) -> None:
    """Set a whole dimension, or one key of an existing one (`space.lora.r.high=64`)."""
    dimensions = raw.section(top)
    raw.content[top] = dimensions
    inside = next((name for name in dimensions if path.startswith(f"{name}.")), None)
    if inside and isinstance(dimensions[inside], dict):
        dimensions[inside] = {**dimensions[inside], path.removeprefix(f"{inside}."): value}
    elif inside:
        rule = f"{inside} is not a mapping here: set `{top}.{inside}` as a whole"
        raw.add_problem(Problem(f"{top}.{path}", rule, where=location))
        return
    else:
        dimensions.update(pairs({path: value}, descend=config_section))
    raw.set_location(f"{top}.{path}", location)


def _set(raw: RawSweep, key: str, value: Any, location: str) -> None:
    """Set a dotted key, making the mappings on its way."""
    try:
        set_value(raw.content, key, value)
    except NotAMapping as error:
        rule = f"{error.part} is not a mapping"
        raw.add_problem(Problem(key, rule, repr(error.value), where=location))
        return
    raw.set_location(key, location)
