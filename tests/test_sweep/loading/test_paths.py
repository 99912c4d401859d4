"""Files and folders that a sweep file names are made absolute."""

from helpers.sweeps.sweep_files import PLAIN, write

from sweep.loading import loader


def test_paths_are_looked_up_beside_the_file_and_in_the_working_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    for name in ("sweeps/beside.csv", "here/here.csv", "sweeps/both.csv", "here/both.csv"):
        write(tmp_path, "x", name)
    (tmp_path / "sweeps/model").mkdir()
    monkeypatch.chdir(here)
    path = write(
        tmp_path,
        "base:\n  model: {name_or_path: model}\n  data: {path: both.csv, eval_path: here.csv}\n"
        "  deepspeed: {config: beside.csv}\n  zero_stage: 1\n" + PLAIN,
        "sweeps/a.yaml",
    )
    base = loader.load(path).base
    assert base["model"]["name_or_path"] == str(tmp_path / "sweeps/model")
    assert base["data"] == {
        "path": str(tmp_path / "sweeps/both.csv"),
        "eval_path": str(tmp_path / "here/here.csv"),
    }
    assert base["deepspeed"]["config"] == str(tmp_path / "sweeps/beside.csv")
    typed = loader.load(path, ["data.path=both.csv"]).base["data"]["path"]
    assert typed == str(here / "both.csv")


def test_hub_ids_and_builtins_are_left_alone(tmp_path):
    text = "base:\n  model: {name_or_path: Qwen/Qwen2-0.5B}\n  data: {path: builtin:python-docs}\n"
    base = loader.load(write(tmp_path, text + PLAIN)).base
    assert base["model"]["name_or_path"] == "Qwen/Qwen2-0.5B"
    assert base["data"]["path"] == "builtin:python-docs"


def test_paths_in_the_space_are_made_absolute_too(tmp_path):
    write(tmp_path, "x", "a.csv")
    text = "space:\n  data.path: [a.csv, builtin:python-docs]\nstop: {trials: 2}\n"
    (branch,) = loader.load(write(tmp_path, text)).space["data.path"]
    assert branch.choices == (str(tmp_path / "a.csv"), "builtin:python-docs")
