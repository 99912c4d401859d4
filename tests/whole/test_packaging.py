"""What a wheel holds: pyproject names every package, and the files that are no Python."""

import tomllib

from helpers.paths import ROOT

from sweep.loading import sweep_files

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
TOP = ("sweep", "trial", "results")


def test_every_package_of_the_tree_is_named():
    found = {file.parent for top in TOP for file in (ROOT / top).rglob("*.py")}
    named = {path.relative_to(ROOT).as_posix().replace("/", ".") for path in found}
    assert sorted(SETUPTOOLS["packages"]) == sorted(named)


def test_every_file_beside_the_code_is_named():
    given = SETUPTOOLS["package-data"]
    matched = {
        file
        for package, patterns in given.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    beside = {
        file
        for top in TOP
        for file in (ROOT / top).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert beside == matched


def test_every_sweep_file_comes_along():
    given = SETUPTOOLS["data-files"].values()
    matched = {file for patterns in given for pattern in patterns for file in ROOT.glob(pattern)}
    assert matched == set(sweep_files.SPACES.rglob("*.yaml"))


def test_an_installed_wheel_finds_its_sweep_files(tmp_path):
    assert sweep_files.shipped_folder(checkout=tmp_path / "spaces", prefix=tmp_path).is_relative_to(
        tmp_path
    )
    shared = tmp_path / "share" / "gaudi-sweep" / "spaces"
    assert sweep_files.shipped_folder(checkout=tmp_path / "spaces", prefix=tmp_path) == shared
    assert sweep_files.shipped_folder(checkout=ROOT / "spaces", prefix=tmp_path) == ROOT / "spaces"
