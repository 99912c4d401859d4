"""STAND-IN: `mark_step`, which ends a lazily recorded graph on a Gaudi and here counts calls."""

from habana_frameworks.torch import hpu  # noqa: F401

marks = 0


def mark_step(*_, **__):
    global marks
    marks += 1


def hpu_set_env(*_, **__):
    return None
