"""Commands that train nothing, on every sweep file that comes with the project."""

from __future__ import annotations

import json

import pytest
from helpers.command import invoke, run_command
from helpers.paths import ROOT

SPACES = ROOT / "spaces"


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_every_shipped_space_checks_and_plans(name):
    done = invoke("check", name)
    assert done.exit_code == 0, done.stderr
    done = invoke("plan", name, "--count", 3)
    assert done.exit_code == 0, done.stderr
    assert "effective batch" in done.stdout


@pytest.fixture
def rows(tmp_path):
    """Twelve rows, two of them with empty answers."""
    records = [{"question": f"q{n}?", "answer": f"so {n}" * (n > 1), "id": n} for n in range(12)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_data_of_a_configuration_as_json(tmp_path, rows):
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{path: {rows.name}}}\nmodel: {{name_or_path: builtin:tiny-llama}}\n")
    done = run_command("data", path, "--row", 1, "--json")
    assert done.returncode == 0, done.stderr
    (seen,) = json.loads(done.stdout)
    assert (seen["summary"]["train_rows"], seen["summary"]["eval_rows"]) == (9, 1)
    assert seen["summary"]["skipped"] == 2
    (_, before), (answer, counts) = seen["row"]["pieces"]
    assert (before, counts) == (False, True)
    assert answer.startswith(" so ")


def test_data_and_check_of_a_sweep_name_every_set(tmp_path, rows):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"base: {{data: {{path: {rows.name}}}}}\n"
        "space: {data.max_length: [8, 64], lora.r: [2, 4]}\nsampler: grid\n"
    )
    shown, checked = invoke("data", path), invoke("check", path)
    assert (shown.exit_code, checked.exit_code) == (0, 0), shown.stderr + checked.stderr
    for length, cut in ((8, 10), (64, 0)):
        assert f"max_length={length}\n" in shown.stdout
        assert f"data (max_length={length}): 9 training and 1 held-out rows" in checked.stdout
        assert f"2 skipped, {cut} cut" in checked.stdout
    assert shown.stdout.count("⟦") == 4


def test_data_refuses_what_is_not_there(rows, tmp_path):
    assert invoke("data", "no_such_space").exit_code == 2
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: nothing.jsonl}\n")
    done = invoke("data", path)
    assert done.exit_code == 2
    assert "data.path" in done.stderr
