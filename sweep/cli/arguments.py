"""Arguments and options that several commands share, and the files they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.output import out
from trial import trust
from trial.config.errors import ConfigError, Problem, unknown
from trial.store.folders import StudyFolder

if TYPE_CHECKING:
    from sweep.spec.spec import SweepSpec

SpaceArgument = Annotated[
    str, typer.Argument(metavar="SPACE", help="A name in spaces/, or the path of a sweep file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.max_steps=50."),
]
AddressOption = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="An existing Ray cluster.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        envvar="GAUDI_SWEEP_STORAGE",
        help="Optuna storage URL; a journal file else. Kept without its password: give it again.",
    ),
]
QuickOption = Annotated[
    bool,
    typer.Option("--quick", help="No rehearsal: build no model, tokenise nothing beforehand."),
]
TrustOption = Annotated[bool, typer.Option(trust.FLAG, help=trust.HELP)]
RunsOption = Annotated[Path, typer.Option("--runs", file_okay=False, help="Folder of all studies.")]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, or the path of its folder.")
]


def load_sweep_file(
    space: str,
    overrides: list[str] | None,
    ray_address: str | None = None,
    *,
    planning: bool = False,
) -> tuple[SweepSpec, Path]:
    """Read a sweep file; check it, its model and its data. Returns the spec and the path.

    When `planning`, a device or a model that is not on this machine is printed and not refused.

    Raises:
        ConfigError: every mistake at once.
    """
    from sweep.loading.loader import examine
    from sweep.loading.raw_sweep import in_file_order
    from sweep.loading.sweep_files import find
    from sweep.planning.preflight import preflight, preflight_sound_sections

    source = find(space)
    checked = examine(source, overrides or ())
    if problems := checked.problems:
        more = checked.locate(preflight_sound_sections(checked.spec, problems))
        raise ConfigError(in_file_order([*problems, *more]))
    try:
        absent = preflight(checked.spec, here=not ray_address, planning=planning)
    except ConfigError as error:
        raise ConfigError(checked.locate(error.problems)) from None
    for problem in checked.locate(absent):
        out.print(f"not on this machine: {problem}", style="yellow", markup=False, soft_wrap=True)
    return checked.spec, source


@contextmanager
def located(space: str, overrides: Sequence[str]) -> Iterator[None]:
    """Give the mistakes that a rehearsal finds the key and the line of the sweep file.

    Raises:
        ConfigError: what a rehearsal has found.
    """
    from sweep.loading.loader import examine
    from sweep.loading.sweep_files import find
    from sweep.planning.rehearsal import RehearsalError

    try:
        yield
    except RehearsalError as error:
        checked = examine(find(space), overrides)
        raise ConfigError(checked.locate(error.problems)) from None


def find_study(study: str, runs: Path) -> StudyFolder:
    """The folder of a study that has been started.

    Raises:
        ConfigError: there is none of that name.
        ValueError: another version wrote it, or its record is lost.
    """
    for path in (runs / study, Path(study)):
        if (folder := StudyFolder(path)).exists():
            folder.refuse_other_version()
            return folder
        folder.refuse_lost_record()
    known = sorted(path.parent.name for path in runs.glob("*/study.json"))
    problem = unknown(study, known, f"study in {runs}")
    raise ConfigError([Problem("STUDY", problem.expected, repr(study), problem.near)])
