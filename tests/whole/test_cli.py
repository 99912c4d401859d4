"""The command as people use it: real Ray, a tiny model that is trained, exit codes, messages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import yaml
from helpers.command import invoke, run_command
from helpers.training import models

from sweep.study import study_lock
from sweep.study.extend_trial import extend_trial
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder


def sweep_file(folder: Path, model: Path, rows: Path, **changes: object) -> Path:
    content = {
        "base": {
            "model": {"name_or_path": str(model)},
            "data": {"path": str(rows), "max_length": 32},
            "training": {"max_steps": 8, "eval_steps": 2, "warmup_ratio": 0.0},
        },
        "space": {"lora.r": [2, 4], "training.learning_rate": [1e-3, 3e-2]},
        "sampler": "grid",
        "pruner": "none",
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    model = models.make_model(folder / "model")
    return model, models.write_rows(folder / "rows.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parts):
    """A sweep of four trials, run to its end through the command."""
    folder = tmp_path_factory.mktemp("finished")
    source = sweep_file(folder, *parts)
    done = run_command("run", source, "--runs", folder / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    return source, StudyFolder(folder / "runs" / "tiny"), done


def test_a_sweep_ends_with_a_table_and_files(finished):
    _, study, done = finished
    assert "Complete, best first" in done.stdout
    assert "every configuration of the space has been tried" in done.stdout
    table = pandas.read_csv(study.report / "trials.csv")
    assert sorted(table["number"]) == [0, 1, 2, 3]
    assert set(table["state"]) == {"complete"}
    pandas.testing.assert_series_equal(
        table["value"], pandas.read_parquet(study.report / "trials.parquet")["value"]
    )
    assert (study.report / "report.md").read_text().startswith("#")


def test_every_trial_has_a_complete_folder(finished):
    _, study, _ = finished
    for number, folder in study.all_trials():
        result = folder.read_result()
        assert result.state == "complete"
        evaluations = folder.read_evaluations()
        assert [row.step for row in evaluations] == [2, 4, 6, 8]
        assert result.eval_loss == min(row.eval_loss for row in evaluations)
        assert folder.read_config().origin.number == number
        assert (folder.adapter / "adapter_model.safetensors").exists()
        assert folder.log.exists()


def test_the_same_command_again_trains_nothing(finished):
    source, study, _ = finished
    before = {n: folder.result.stat().st_mtime_ns for n, folder in study.all_trials()}
    done = run_command("run", source, "--runs", study.path.parent)
    assert done.returncode == 0
    assert {n: folder.result.stat().st_mtime_ns for n, folder in study.all_trials()} == before


def test_a_trial_by_hand_repeats_the_losses_to_the_bit(finished, tmp_path):
    _, study, _ = finished
    original = study.trial(3)
    copy = tmp_path / "by-hand"
    copy.mkdir()
    shutil.copy(original.config, copy / "config.json")
    # The sweep gave each worker one thread.
    done = subprocess.run(
        [sys.executable, "-m", "trial", str(copy)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = [row.eval_loss for row in original.read_evaluations()]
    assert [row.eval_loss for row in TrialFolder(copy).read_evaluations()] == theirs


def test_a_changed_sweep_file_is_refused_with_the_difference(finished, parts, tmp_path):
    _, study, _ = finished
    changed = sweep_file(tmp_path, *parts, space={"lora.r": [2, 8]})
    done = invoke("run", changed, "--runs", study.path.parent)
    assert done.exit_code == 2
    assert "lora.r" in done.stderr
    assert "--fresh" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_driver_is_refused_and_the_first_is_named(finished):
    source, study, _ = finished
    with study_lock.hold(study):
        done = run_command("run", source, "--runs", study.path.parent)
    assert done.returncode == 2
    assert "is being run by process" in done.stderr


def test_status_and_report_of_a_finished_study(finished):
    _, study, _ = finished
    for verb in ("status", "report"):
        done = invoke(verb, "tiny", "--runs", study.path.parent)
        assert done.exit_code == 0, done.stderr
        assert "Complete, best first" in done.stdout


@pytest.mark.parametrize(
    ("rates", "states", "code"),
    [
        ([1e30, 1e-3, 2e30, 3e30, 4e30], ["failed", "complete", "failed", "failed", "failed"], 0),
        ([1e30, 2e30, 1e-3], ["failed", "failed"], 1),
    ],
    ids=["one is complete", "all diverge"],
)
def test_bad_trials_end_only_themselves_until_all_fail_alike(parts, tmp_path, rates, states, code):
    space = {"training.learning_rate": rates}
    changes = {"space": space, "failures": {"alike": 2}, "resources": {"concurrency": 1}}
    source = sweep_file(tmp_path, *parts, **changes)
    done = run_command("run", source, "--runs", tmp_path / "runs")
    assert done.returncode == code, done.stdout + done.stderr
    assert ("failed alike: diverged" in done.stdout) is bool(code)
    study = StudyFolder(tmp_path / "runs" / "tiny")
    results = [folder.read_result() for _, folder in study.all_trials()]
    assert [result.state for result in results] == states
    assert {result.cause.kind for result in results if result.cause} == {"diverged"}


BAD = [
    (["check", "lora_rnak"], "lora_rank"),
    (["check", "lora_rank", "--set", "training.max_stepz=5"], "max_steps"),
    (["check", "lora_rank", "--set", "model.name_or_path=/nowhere/model"], "model.name_or_path"),
    (["check", "lora_rank", "--set", "data.path=/nowhere/rows.csv"], "data.path"),
    (["run", "lora_rank", "--study", "../escape"], "--study"),
    (["run", "lora_rank", "--device", "tpu"], "device"),
    (["plan", "lora_rank", "--count", "-3"], "--count"),
    (["status", "lora_rank", "--runs", __file__], "is a file"),
    (["run", "lora_rank", "--device", "hpu"], "device"),
    (["status", "no-such-study"], "no-such-study"),
    (["frobnicate"], "frobnicate"),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_ends_with_2_and_a_clear_message(words, said, tmp_path):
    runs = words[0] in ("run", "status") and "--runs" not in words
    words = [*words, "--runs", tmp_path] if runs else words
    done = invoke(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_journal_is_plain_optuna(finished):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _, study, _ = finished
    storage = JournalStorage(JournalFileBackend(str(study.journal)))
    loaded = optuna.load_study(study_name="tiny", storage=storage)
    assert [trial.state.name for trial in loaded.trials] == ["COMPLETE"] * 4
    told = [study.trial(n).read_result().eval_loss for n in range(4)]
    assert [trial.value for trial in loaded.trials] == told
    assert json.loads(study.record.read_text())["version"] == 1


def test_the_exported_winner_is_a_plain_adapter_and_merges_to_the_same_model(finished, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, study, _ = finished
    for target, merge in (("adapter", []), ("merged", ["--merge"])):
        words = ["export", "tiny", "--runs", study.path.parent, "--to", tmp_path / target, *merge]
        done = run_command(*words)
        assert done.returncode == 0, done.stderr
    best = min(range(4), key=lambda number: study.trial(number).read_result().eval_loss)
    base = AutoModelForCausalLM.from_pretrained(study.trial(best).read_config().model.name_or_path)
    rows = torch.arange(24).reshape(2, 12)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(rows).logits
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(rows).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-5)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"{study.trial(best).read_result().eval_loss:.4f}" in card
    again = TrialConfig.model_validate_json((tmp_path / "adapter/config.trial.json").read_text())
    assert again.fingerprint() == study.trial(best).read_config().fingerprint()


def test_exporting_to_an_existing_folder_is_refused(finished, tmp_path):
    _, study, _ = finished
    (tmp_path / "x").mkdir()
    done = invoke("export", "tiny", "--runs", study.path.parent, "--to", tmp_path / "x")
    assert done.exit_code == 2
    assert "exists already" in done.stderr


def test_a_finished_trial_goes_on_for_longer_from_where_it_ended(finished, tmp_path):
    _, original, _ = finished
    study = StudyFolder(tmp_path / "tiny")
    shutil.copytree(original.path, study.path)
    # The best has kept its checkpoint, and no other.
    (best,) = [number for number, folder in study.all_trials() if folder.checkpoints.exists()]
    before = study.trial(best).result.read_text()
    with pytest.raises(ConfigError, match=r"more training\.max_steps"):
        extend_trial(study, None, best, ["training.max_steps=4"])
    words = ["resume", "tiny", "--runs", tmp_path, "--continue", best]
    done = run_command(*words, "--set", "training.max_steps=12", "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    longer = study.trial(4)
    assert (longer.read_result().state, longer.read_result().steps) == ("complete", 12)
    assert longer.read_attempts()[0].resumed_from == 8
    assert [row.step for row in longer.read_evaluations()] == [2, 4, 6, 8, 10, 12]
    assert longer.read_config().origin.continues == best
    assert study.trial(best).result.read_text() == before
    assert invoke("verify", "tiny", "--runs", tmp_path).exit_code == 0


def test_compare_shows_trials_side_by_side_with_sample_completions(finished):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, study, _ = finished
    done = run_command("compare", "tiny", "--runs", study.path.parent, "--trials", "1 3")
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.split("comparison: ")[1].strip())
    lines = (study.trial(3).path / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert all(sample["completion"].strip()[:10] in page.read_text() for sample in samples)
    # The same words from plain transformers and PEFT, one most likely token after another.
    name = study.trial(3).read_config().model.name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    model = PeftModel.from_pretrained(model, str(study.trial(3).adapter)).eval()
    said = []
    for sample in samples:
        ids = tokenizer(sample["prompt"], return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        with torch.no_grad():
            while ids.shape[1] < start + 4 and ids[0, -1] != tokenizer.eos_token_id:
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        said.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
        assert sample["completion"].startswith(said[-1])
    assert any(said)
