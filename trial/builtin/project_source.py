"""Python files of this project as they were at one commit, without a checkout of it.

The built-in rows are drawn from them. They are read from git's history, so a tree without one (a
wheel, a shallow clone) cannot make the rows anew; it has them in `rows.jsonl.gz`.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

COMMIT = "40246ca06dac99dd60a691453ebaff05fa812671"
FOLDERS = ("results", "sweep", "tests", "trial")
"""Folders whose files are read."""


def python_files(commit: str = COMMIT) -> dict[str, str]:
    """Text of each file by its path, sorted by path.

    Raises:
        RuntimeError: git is missing, or does not have the commit.
    """
    command = ["git", "archive", "--format=tar", commit, "--", *FOLDERS]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise RuntimeError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"git cannot read commit {commit}: {error.stderr.decode()}") from error
    files: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            content = archive.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                files[member.name] = content.read().decode("utf-8")
    return files
