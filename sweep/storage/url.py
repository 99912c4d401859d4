"""Storage URLs: opened with clear errors, shown and stored without their password.

A URL with a password is given by `--storage` or in the environment variable GAUDI_SWEEP_STORAGE,
when the study is started and again when it is resumed; `study.json` has it without the password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from trial.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

VARIABLE = "GAUDI_SWEEP_STORAGE"
HIDDEN = "***"

# Both begin with a sign that no part before it may hold: a long text is read once, and not from
# each of its letters on. For the same reason repetitions are possessive (`*+`) where they can be.
_USER_INFO = re.compile(r"(?P<head>(?<=[\w+.-])://[^/@:\s]*+:)(?P<secret>[^@/\s]++)(?=@)")
_PARAMETER = re.compile(
    r"(?i)(?P<head>[?&][\w.-]*(?:password|passwd|passphrase|pwd|secret|token|key)=)"
    r"(?P<secret>[^&#\s]+)"
)
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")

_DRIVERS = {
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("MySQLdb", "mysqldb"), ("pymysql", "pymysql")),
    "mariadb": (("MySQLdb", "mysqldb"), ("pymysql", "pymysql")),
}
"""Modules that speak with a database, and SQLAlchemy's names of them; the first is its default."""
_EXTRA = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}
"""The extra of this package that installs one, by database."""


def masked(text: str) -> str:
    """The text with every password of a URL in it hidden."""
    for pattern in (_USER_INFO, _PARAMETER):
        text = pattern.sub(lambda found: found["head"] + HIDDEN, text)
    return text


def secrets(url: str) -> list[str]:
    """The passwords in a URL, as written and as decoded."""
    found = [m["secret"] for pattern in (_USER_INFO, _PARAMETER) for m in pattern.finditer(url)]
    return [form for secret in found for form in (secret, unquote(secret))]


def with_absolute_path(url: str) -> str:
    """The URL with a relative path of SQLite made absolute, so that it holds in every folder."""
    head = _SQLITE.match(url)
    if head is None or url[head.end() :].startswith((":memory:", "file:")):
        return url
    path, mark, query = url[head.end() :].partition("?")
    return f"{head[0]}{Path(path).resolve()}{mark}{query}" if path else url


def resumed_url(kept: str | None, given: str | None) -> str | None:
    """The URL of a study that is resumed: the kept one, with the password that is given again.

    Raises:
        ConfigError: the password is missing, or another storage is given.
    """
    given = with_absolute_path(given) if given else None
    if given is not None and masked(given) != kept:
        was = masked(kept) if kept else "its journal file"
        rule = f"the study keeps its storage, {was} (`--fresh` starts anew)"
        raise ConfigError([Problem(f"--storage or {VARIABLE}", rule, masked(given))])
    if given is None and kept is not None and HIDDEN in kept:
        rule = f"the password of {kept} is not kept with the study: give the whole URL again"
        raise ConfigError([Problem(f"--storage or {VARIABLE}", rule)])
    return given or kept


def connect(url: str) -> BaseStorage:
    """Open an Optuna storage by its URL.

    Raises:
        ConfigError: it names nothing that can be opened; says why, never the password.
    """
    import optuna
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.storages.get_storage(with_driver(url))
    except (SQLAlchemyError, ImportError, ValueError, OSError, OptunaError) as error:
        rule = f"expected an Optuna storage URL that can be opened: {error_text(error, url)}"
        extra = _EXTRA.get(re.split(r"[:+]", url, maxsplit=1)[0])
        if isinstance(error.__cause__ or error, ImportError) and extra:
            rule += f"; `pip install 'gaudi-sweep[{extra}]'` installs a driver"
        raise ConfigError([Problem("--storage", rule, masked(url))]) from None


def with_driver(url: str) -> str:
    """A URL that names a database alone, with a driver that is installed; others as they are."""
    database, mark, rest = url.partition("://")
    installed = (name for module, name in _DRIVERS.get(database, ()) if find_spec(module))
    driver = next(installed, None)
    return f"{database}+{driver}{mark}{rest}" if driver else url


def is_storage_error(error: BaseException) -> bool:
    """Whether an exception or one of its causes comes from a storage."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return any(isinstance(e, StorageInternalError | SQLAlchemyError) for e in _causes(error))


def is_missing(error: BaseException) -> bool:
    """Whether an exception or a cause may say that a study, a trial or the journal is not there."""
    from sqlalchemy.exc import IntegrityError

    return any(isinstance(e, KeyError | FileNotFoundError | IntegrityError) for e in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def error_text(error: BaseException, url: str | None = None) -> str:
    """The first line of the innermost error's message, without passwords."""
    deepest = getattr(error, "orig", None) or error.__cause__ or error
    deepest = getattr(deepest, "orig", None) or deepest
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    text = masked(lines[0] if lines else type(deepest).__name__)
    for secret in secrets(url or ""):
        text = text.replace(secret, HIDDEN)
    return text
