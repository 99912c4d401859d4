"""`gaudi-sweep export` as people use it: files, card, loss, and nothing after a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures.loop import row_by_row
from helpers.command import run_command
from helpers.paths import ROOT
from helpers.sweeps.studies import grid_of_ranks
from helpers.training import seed
from helpers.training.train import Material
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from trial import single_run
from trial.data.prepare import prepare
from trial.model.load import load_tokenizer
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord
from trial.train import train

SHORT = {"max_steps": 6, "eval_steps": 3, "learning_rate": 3e-2, "save_strategy": "no"}
TRIALS: dict[int, dict[str, Any]] = {
    0: {"lora": {"r": 2}},
    1: {"lora": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}},
    2: {"lora": {"r": 0}},
}
"""An adapter, one on embeddings that are tied to the output layer, a whole model."""
ALWAYS = {"README.md", "config.trial.json", "prompt_format.json", "tokenizer.json"}
ADAPTER = ALWAYS | {"adapter_config.json", "adapter_model.safetensors"}
MODEL = ALWAYS | {"config.json", "model.safetensors", "generation_config.json"}


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyFolder:
    """A finished study of three trials over a base with tied embeddings."""
    root = tmp_path_factory.mktemp("export")
    material = Material(root)
    tied = LlamaConfig.from_pretrained(material.model, tie_word_embeddings=True)
    tied.initializer_range = 0.1
    AutoModelForCausalLM.from_config(tied).save_pretrained(material.model)
    found = StudyFolder(root / "runs" / "ranks")
    found.write_record(StudyRecord(name="ranks", spec=grid_of_ranks(2, 4).content()))
    for number, sections in TRIALS.items():
        config = material.config(training=SHORT, **sections)
        train(TrialFolder.create(found.trial(number).path, config), None, material.process_cache())
    return found


def export(study: StudyFolder, target: Path, number: int, *words: str):
    where = ["--runs", study.path.parent, "--to", target, "--trial", number]
    return run_command("export", study.name, *where, *words)


def loss_of(folder: TrialFolder, exported: Path) -> float:
    """The loss of an export's files as plain PEFT or transformers load them."""
    config = folder.read_config()
    if (exported / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
        model = PeftModel.from_pretrained(base, str(exported))
    else:
        model = AutoModelForCausalLM.from_pretrained(exported)
    return row_by_row(model, prepare(config.data, load_tokenizer(config.model)))


def stated(card: str) -> tuple[float, float]:
    """The losses of the table and of the export that a card states."""
    table = re.search(r"\| held-out loss \| ([\d.]+) nats", card)
    again = re.search(
        r"\| measured again \| ([\d.]+) over \d+ tokens, by (PEFT|transformers)", card
    )
    assert table is not None
    assert again is not None
    return float(table[1]), float(again[1])


@pytest.mark.parametrize(
    ("number", "words", "files"),
    [
        (0, [], ADAPTER),
        (0, ["--merge"], MODEL),
        (1, [], ADAPTER),
        (1, ["--merge"], MODEL),
        (2, [], MODEL),
    ],
)
def test_an_export_is_the_trained_model_and_its_card_states_the_measured_loss(
    study, tmp_path, number, words, files
):
    folder, target = study.trial(number), tmp_path / "out"
    done = export(study, target, number, *words)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["out"]
    assert files <= set(os.listdir(target))
    expected = folder.read_result().eval_loss
    found = loss_of(folder, target)
    assert found == pytest.approx(expected, abs=1e-5)
    card = (target / "README.md").read_text()
    assert stated(card) == pytest.approx((expected, found), abs=6e-5)
    assert f"loss, loaded again: {stated(card)[1]:.4f} over" in done.stdout
    template = AutoTokenizer.from_pretrained(target).apply_chat_template(
        [{"role": "user", "content": "QUESTION"}], tokenize=False, add_generation_prompt=True
    )
    assert template in card


def test_a_failed_export_leaves_nothing_and_the_same_command_works_later(study, tmp_path):
    target = tmp_path / "out"
    base = Path(study.trial(0).read_config().model.name_or_path) / "model.safetensors"
    aside = base.rename(base.with_suffix(".aside"))
    try:
        done = export(study, target, 0, "--merge")
    finally:
        aside.rename(base)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
    assert export(study, target, 0, "--merge").returncode == 0
    # Tied as the base is, since the adapter has changed neither embeddings nor output layer.
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"]
    assert set(load_file(target / "model.safetensors")) == set(load_file(base))


def test_a_disk_on_which_the_model_does_not_fit_is_told_in_a_sentence(study, tmp_path):
    """The limit of a file's size, 16 blocks of 1024 bytes, stands for the end of the disk."""
    trial = study.trial(0).path
    words = f"{sys.executable} -m trial.export {trial} {tmp_path / 'out'} --merge"
    limited = ["bash", "-c", f"ulimit -f 16; exec {words}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(limited, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == []
    assert export(study, tmp_path / "out", 0, "--merge").returncode == 0


@pytest.mark.parametrize("merge", [[], ["--merge"]])
def test_a_single_run_of_the_seeds_files_is_exported(tmp_path, tmp_path_factory, merge, seed_run):
    target = tmp_path / "out"
    words = [sys.executable, "-m", "trial.export", str(seed_run.path), str(target), *merge]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (MODEL if merge else ADAPTER) - {"generation_config.json"} <= set(os.listdir(target))
    card = (target / "README.md").read_text()
    assert "[INST] QUESTION [/INST]" in card
    table, again = stated(card)
    assert table == pytest.approx(seed_run.read_result().eval_loss, abs=6e-5)
    # The seed's files train in bfloat16.
    assert again == pytest.approx(table, abs=1e-2)


@pytest.fixture(scope="module")
def seed_run(tmp_path_factory) -> TrialFolder:
    """A finished run of the seed repository's configuration files, one epoch long."""
    root = tmp_path_factory.mktemp("seed")
    seed.write_rows(root / "rows.csv")
    seed.write_model(root / "model")
    file = seed.write_config(root / "config", root / "model", root / "rows.csv")
    read = single_run.read(file, ["num_epochs=1", "device=cpu"], run_dir=root / "run")
    folder = single_run.open_folder(read)
    result = train(folder)
    assert result.state == "complete", result.cause
    return folder
