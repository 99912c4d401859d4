"""The seed's own files: its names in ours, a single run of them, and a sweep around them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.training.seed import DS_CONFIG, FINETUNE_LORA, write_config, write_rows

from sweep.loading import loader
from sweep.spec.space import Space
from trial import seed_config, single_run
from trial.__main__ import main
from trial.config.errors import ConfigError
from trial.config.trial_config import parse
from trial.data.messages import Message
from trial.data.prompts import PROMPT_FORMATS, render
from trial.store.records import Attempt, Cause, Result


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path / "config", "builtin:tiny-llama", "builtin:python-docs")


def rewritten(file: Path, *changes: tuple[str, str], more: str = "") -> Path:
    text = file.read_text()
    for pattern, new in changes:
        text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
        assert count == 1
    file.write_text(text + more)
    return file


def mistakes(file: Path, *overrides: str, **options) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        single_run.read(file, overrides, **options)
    return [str(problem) for problem in caught.value.problems]


def test_every_name_of_the_seed_has_its_place_and_what_it_implies(config):
    found = single_run.read(config).config
    expected = parse(
        {
            "model": {"name_or_path": "builtin:tiny-llama", "dtype": "bfloat16"},
            "data": {
                "path": "builtin:python-docs", "name": "full", "prompt_format": "llama2",
                "max_length": 500,
            },
            "lora": {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05},
            "training": {
                "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
                "gradient_accumulation_steps": 1, "num_train_epochs": 10, "learning_rate": 1e-4,
                "weight_decay": 0, "seed": 42, "bf16": True, "lr_scheduler_type": "linear",
                "warmup_ratio": 0.1,
            },
            "gaudi_config": "Habana/llama",
            "deepspeed": {"config": str(config.parent.absolute() / "ds_config.json")},
            "zero_stage": 1,
        }
    )  # fmt: skip
    assert found == expected
    named = set(re.findall(r"^(\w+):|^  (\w+):", FINETUNE_LORA, flags=re.MULTILINE))
    names = {top or f"LoRA.{inner}" for top, inner in named} - {"LoRA"}
    assert names == set(seed_config.NAMES)
    assert single_run.read(config).folder.path == Path("/save_dir")
    assert single_run.read(config, run_dir=Path("x")).folder.path == Path("x")


@pytest.mark.parametrize(
    ("more", "overrides", "key", "value"),
    [
        ("device: cpu\n", [], "device", "cpu"),
        ("data: {max_length: 64}\n", [], "data.max_length", 64),
        ("training: {bf16: false}\n", [], "training.bf16", False),
        ("zero_stage: 3\n", [], "zero_stage", 3),
        ("zero_stage: null\n", [], "zero_stage", None),
        ("", ["lr=3e-4"], "training.learning_rate", 3e-4),
        ("", ["training.learning_rate=3e-4"], "training.learning_rate", 3e-4),
        ("", ["LoRA.r=0"], "lora.r", 0),
        ("", ["model_family=phi"], "data.prompt_format", "phi"),
    ],
)
def test_our_keys_stand_beside_the_seeds(config, more, overrides, key, value):
    found = single_run.read(rewritten(config, more=more), overrides).config.model_dump()
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_without_its_json_the_seeds_file_trains_without_deepspeed(config):
    (config.parent / "ds_config.json").unlink()
    found = single_run.read(config).config
    assert found.zero_stage is None
    (line,) = mistakes(config, deepspeed=True)
    assert line.startswith("command line --use-deepspeed: needs a stage: ds_config.json")
    assert single_run.read(config, ["zero_stage=2"], deepspeed=True).config.zero_stage == 2


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("llama2-7b", "[INST] Why? [/INST]"),
        ("phi", "Question: Why?\nAnswer: "),
        ("stablelm", "Question: Why?\nAnswer: "),
        ("pythia-1.4", "Question: Why?\nAnswer: "),
        ("qwen2-7b", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
        ("llama3-8b", "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
                      "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    ],
)  # fmt: skip
def test_families_have_the_seeds_tags(tmp_path, family, prompt):
    found = seed_config.translate({"model_family": family}, tmp_path).content["data"][
        "prompt_format"
    ]
    assert render(PROMPT_FORMATS[found], [Message("user", "Why?")]) == prompt


def test_the_documentation_has_every_name_and_its_sweep_is_good(config, tmp_path):
    page = (ROOT / "docs" / "train.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    first = " ".join(line.split("|")[1] for line in rows)
    assert not [
        name for name in seed_config.NAMES if name.split(".")[-1] not in re.findall(r"\w+", first)
    ]
    (tmp_path / "page.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    found = Space.of(loader.load(tmp_path / "page.yaml")).configure({"lora.r": 16})
    assert (found.lora.lora_alpha, found.zero_stage) == (64, 1)


def test_all_mistakes_at_once_each_with_its_line_and_the_nearest_name(config):
    rewritten(
        config,
        ("^lr:", "larning_rate:"),
        ("^  alpha:", "  lora_alpha:"),
        ("llama2-7b", "lama2"),
        ("^seed: 42", "seed: many"),
        more="training: {weight_decay: 0.1}\ndevice: gpu\n",
    )
    found = mistakes(config, "batch_size=x", "data.pathh=3", "nonsense")
    places = [line.split(": ")[0].replace(str(config), "F") for line in found]
    assert sorted(places) == sorted(
        [
            "F:16 larning_rate", "F:2 model_family", "F:7 LoRA.lora_alpha", "F:17 weight_decay",
            "F:18 seed", "F:20 device", "--set batch_size=x batch_size",
            "--set data.pathh=3 data.pathh", "--set nonsense an override is `key=value`",
        ]
    )  # fmt: skip
    near = {line.split(" (did you mean ")[1] for line in found if "did you mean" in line}
    assert {"lr?)", "llama2?)", "LoRA.alpha?)"} <= near
    assert any("stands beside training.weight_decay" in line for line in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("^LoRA:", "Lora:"), "5 Lora: unknown key; .* got 'Lora' \\(did you mean LoRA\\?\\)"),
        (
            ("^LoRA:\n  r: 8\n", "LoRA.r: 8\nLoRA:\n"),
            "LoRA.r: stands inside of LoRA, as LoRA: {r: ",
        ),
        (("^seed: 42", "seed: 4294967296"), "18 seed: must be below 2\\*\\*32, got 4294967296"),
        (("Habana/llama", "{use_fused_adamm: no}"), "3 gaudi_config_name.use_fused_adamm: unknown"),
    ],
)
def test_a_slip_in_one_line_is_named_by_it(config, change, said):
    (line,) = mistakes(rewritten(config, change))
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "a DeepSpeed configuration in JSON"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage: must be 0, 1, 2 or 3"),
    ],
)
def test_a_bad_json_beside_the_file_is_named(config, content, said):
    beside = config.parent / "ds_config.json"
    beside.write_text(content)
    assert any(line.startswith(str(beside)) and said in line for line in mistakes(config))


def test_what_is_not_there_is_refused_under_the_seeds_name(tmp_path):
    file = write_config(tmp_path, "./no-model", "../no/such/data.csv")
    found = mistakes(file)
    assert [line.split(": ")[0] for line in found] == [f"{file}:1 model_id", f"{file}:10 data_path"]
    assert all("no such file" in line for line in found)


def test_a_file_in_our_own_keys_is_a_single_run_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text("lora: {r: 4}\ntraining: {max_steps: 3}\n")
    found = single_run.read(file, ["training.max_steps=5"])
    assert found.config == parse({"lora": {"r": 4}, "training": {"max_steps": 5}})
    assert found.folder.path == Path("runs/single/mine")
    file.write_text("lora: {rank: 4}\ntrainin: {}\n")
    lines = mistakes(file)
    assert [line.split(":")[1].split(" ")[0] for line in lines] == ["1", "2"]
    file.write_text("[1]")
    assert "is a mapping" in mistakes(file)[0]


def test_the_same_file_leads_to_the_same_run_and_another_is_refused(config, tmp_path):
    run = tmp_path / "run"
    folder = single_run.open_folder(single_run.read(config, run_dir=run))
    assert single_run.open_folder(single_run.read(config, run_dir=run)).path == folder.path
    with pytest.raises(ConfigError, match=r"training.learning_rate: was 0.0001, got 0.002"):
        single_run.open_folder(single_run.read(config, ["lr=2e-3"], run_dir=run))
    attempt = Attempt(started=0.0, host="here", pid=1, device="cpu", devices=2)
    folder.append_attempt(attempt)
    with pytest.raises(ConfigError, match=r"--world-size: goes on with the 2 ranks .* got 1"):
        single_run.open_folder(single_run.read(config, run_dir=run))
    failed = Result(state="failed", cause=Cause(kind="lost", message="gone"))
    folder.write_result(failed)
    single_run.open_folder(single_run.read(config, run_dir=run), world_size=2)
    assert folder.read_result() is None
    assert folder.read_failures() == [failed]
    folder.config.write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ConfigError, match="is no run's"):
        single_run.open_folder(single_run.read(config, run_dir=run))


def test_a_run_of_an_earlier_version_goes_on_as_it_began(config, tmp_path):
    run = tmp_path / "run"
    folder = single_run.open_folder(single_run.read(config, run_dir=run))
    content = json.loads(folder.config.read_text())
    for name in ("tokenize", "train_on"):
        del content["data"][name]
    folder.config.write_text(json.dumps(content))
    again = single_run.open_folder(single_run.read(config, run_dir=run))
    assert again.read_config().data.tokenize == "apart"
    with pytest.raises(ConfigError, match=r"data\.tokenize: was .*apart"):
        single_run.open_folder(single_run.read(config, ["data.tokenize=together"], run_dir=run))


SWEEP = """\
question: Which rank?
base: config/finetune_lora.yaml
space:
  lora.r: [4, 16]
  training.learning_rate: {low: 0.0001, high: 0.01, log: true}
stop: {trials: 4}
"""


def test_the_seeds_file_is_the_base_of_a_sweep(config, tmp_path):
    source = tmp_path / "ranks.yaml"
    source.write_text(SWEEP)
    found = Space.of(loader.load(source)).configure({"lora.r": 16, "training.learning_rate": 1e-3})
    alone = single_run.read(config, ["lora.r=16", "lr=1e-3"]).config
    assert found == alone
    assert loader.load(source, ["training.bf16=false"]).base["training"]["bf16"] is False
    rewritten(config, ("^lr: .*", "lr: -1"), ("^num_e", "e"), ("out: 0.05", "out: 2"))
    source.write_text(
        "".join(line for line in SWEEP.splitlines(True) if "learning_rate" not in line)
    )
    with pytest.raises(ConfigError) as caught:
        loader.load(source)
    places = [str(problem).split(": ")[0].replace(str(config), "F") for problem in
              caught.value.problems]  # fmt: skip
    assert places == [
        "F:8 base.lora.lora_dropout", "F:14 base.epochs", "F:16 base.training.learning_rate",
    ]  # fmt: skip


def test_the_command_trains_the_seeds_files_and_goes_on_with_what_is_there(tmp_path):
    """`PYTHON -m sweep train` is `gaudi-sweep train`; the rest of the words are the seed's."""
    write_rows(tmp_path / "rows.csv")
    file = write_config(tmp_path / "config", "builtin:tiny-llama", "../rows.csv")
    run = tmp_path / "run"
    words = [sys.executable, "-m", "sweep", "train", str(file), "--use_deepspeed", "--run-dir",
             str(run), "--set", "num_epochs=2", "--set", "device=cpu"]  # fmt: skip
    first, again = (subprocess.run(words, capture_output=True, text=True) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == f"{run}: 8 steps on cpu"
    steps = [
        int(found[1]) for line in lines if (found := re.match(r"step +(\d+) of 8  eval_loss", line))
    ]
    assert steps == list(range(1, 9))
    result = json.loads((run / "result.json").read_text())
    assert f"{result['value']:.4f}" in first.stdout.split("complete", 1)[1]
    assert again.stdout.startswith(f"complete: eval_loss {result['value']}")
    assert len((run / "attempts.jsonl").read_text().splitlines()) == 1
    assert json.loads((file.parent / "ds_config.json").read_text()) == json.loads(DS_CONFIG)


@pytest.mark.parametrize(("failure", "code"), [("", 0), ("no disk", 1)])
def test_a_complete_run_is_merged_once(config, tmp_path, monkeypatch, capsys, failure, code):
    run = tmp_path / "run"
    folder = single_run.open_folder(single_run.read(config, ["device=cpu"], run_dir=run))
    folder.write_result(Result(state="complete", eval_loss=1.0))
    ran = []

    def merge(words, **_):
        ran.append(words)
        return subprocess.CompletedProcess(words, code, stderr=failure)

    monkeypatch.setattr(subprocess, "run", merge)
    monkeypatch.setattr("trial.__main__.set_environment", lambda *_: None)
    assert main([str(run), "--merge"]) == code
    target = str(run / "merged")
    assert ran == [[sys.executable, "-m", "trial.export", str(run), target, "--merge"]]
    assert main([str(run), "--merge", "--trust-remote-code"]) == code
    assert ran[1:] == [[*ran[0], "--trust-remote-code"]]
    assert failure in capsys.readouterr().err
    Path(target).mkdir()
    assert main([str(run), "--merge"]) == 0
    assert len(ran) == 2
