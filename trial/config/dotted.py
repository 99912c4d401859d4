"""Dotted paths into nested mappings: `training.learning_rate` is `content["training"][...]`.

Torch-free, and without knowledge of which keys there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any


class NotAMapping(ValueError):  # noqa: N818
    """A dotted path leads through a value that is not a mapping.

    Attributes:
        part: the name in the path at which that value stands.
        value: the value.
    """

    def __init__(self, part: str, value: Any) -> None:
        self.part, self.value = part, value
        super().__init__(f"{part} is not a mapping: {value!r}")


def is_filled_mapping(path: str, value: Any) -> bool:
    """Whether a value is a mapping with keys; what `flatten` descends into by default."""
    return isinstance(value, Mapping) and bool(value)


def pairs(
    content: Mapping[str, Any],
    *,
    descend: Callable[[str, Any], bool] = is_filled_mapping,
    sections: bool = False,
) -> Iterator[tuple[str, Any]]:
    """Dotted paths and values, in the order of the mapping.

    A path may come twice when the names of the mapping hold dots themselves.

    Args:
        content: The nested mapping.
        descend: Given a path and its value: whether to go on inside the value.
        sections: Whether a mapping that is descended into comes as a value too, before its keys.
    """
    yield from _below("", content, descend, sections)


def _below(
    prefix: str, content: Mapping[str, Any], descend: Callable[[str, Any], bool], sections: bool
) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        path = f"{prefix}{name}"
        inside = descend(path, value)
        if sections or not inside:
            yield path, value
        if inside:
            yield from _below(f"{path}.", value, descend, sections)


def flatten(
    content: Mapping[str, Any],
    *,
    descend: Callable[[str, Any], bool] = is_filled_mapping,
    sections: bool = False,
) -> dict[str, Any]:
    """The values of a nested mapping by dotted path; arguments as in `pairs`.

    By default lists and empty mappings are values.
    """
    return dict(pairs(content, descend=descend, sections=sections))


def get_value(content: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path; `default` where there is none."""
    value: Any = content
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def has_value(content: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value at a dotted path; null is one."""
    missing = object()
    return get_value(content, path, missing) is not missing


def set_value(
    content: MutableMapping[str, Any],
    path: str,
    value: Any,
    new_section: Callable[[str], Any] = lambda path: {},
) -> None:
    """Set the value at a dotted path, in place; what is absent or null on the way is made.

    Args:
        content: The nested mapping.
        path: Where the value goes.
        value: The value, not copied.
        new_section: Makes the section that is missing at a path.

    Raises:
        NotAMapping: the path leads through a value that is not a mapping.
    """
    parts = path.split(".")
    section: Any = content
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = new_section(".".join(parts[:depth]))
        section = section[part]
        if not isinstance(section, MutableMapping):
            raise NotAMapping(part, section)
    section[parts[-1]] = value
