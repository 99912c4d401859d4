"""The table of a study: what its rows and columns say, whatever the folders hold."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import pandas as pd
import pytest
from helpers.results import add_trial, make_config, make_study, rank_study, seed_study
from rich.console import Console

from results import print_table, trials_table, write, write_table
from results.data.naming import ranked_trials
from results.data.trials_table import metric_column
from trial.store import metrics
from trial.store.folders import TrialFolder
from trial.store.records import Cause, DataSummary, Result


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return rank_study(tmp_path_factory.mktemp("runs") / "ranks")


@pytest.fixture(scope="module")
def table(study):
    return trials_table(study)


def shown(table: pd.DataFrame) -> str:
    out = io.StringIO()
    print_table(table, Console(file=out, width=200, color_system=None))
    return out.getvalue()


def test_one_row_per_folder_in_number_order(study, table):
    assert list(table["number"]) == [number for number, _ in study.all_trials()]
    assert table["state"].value_counts().to_dict() == {
        "complete": 13, "pruned": 2, "failed": 2, "duplicate": 1, "unfinished": 1,
    }  # fmt: skip


def test_a_row_says_what_the_result_said(study, table):
    row = table.set_index("number").loc[7]
    result = study.trial(7).read_result()
    assert row["value"] == result.eval_loss
    assert row["lora.r"] == 16
    assert row["training.learning_rate"] == 1e-3
    assert row["scale"] == study.trial(7).read_config().lora.scale
    assert row["trainable_parameters"] == 16_000
    assert row["seconds_total"] == pytest.approx(result.seconds.total)
    assert row["seconds_train"] == result.seconds.train
    assert row["attempts"] == 1
    assert row["device"] == "cpu"


def test_causes_and_duplicates_are_named(table):
    failed = table[table["state"] == "failed"]
    assert list(failed["cause_kind"]) == ["diverged", "out_of_memory"]
    assert failed["cause"].iloc[0] == "eval loss is nan at step 20"
    assert table.loc[table["state"] == "duplicate", "duplicate_of"].item() == 1


def test_numbers_are_nullable_and_never_zero_where_unknown(table):
    assert str(table["best_step"].dtype) == str(table["lora.r"].dtype) == "Int64"
    unfinished = table[table["state"] == "unfinished"].iloc[0]
    assert pd.isna(unfinished["value"])
    assert pd.isna(unfinished["trainable_parameters"])
    assert pd.isna(unfinished["seconds_total"])


def test_searched_columns_are_those_that_were_drawn(table):
    assert table.attrs["searched"] == ["lora.r", "training.learning_rate"]


def test_a_derived_value_is_varied_but_not_searched(tmp_path):
    study = make_study(tmp_path / "s")
    for number, rank in enumerate((4, 8)):
        config = make_config(number, lora__r=rank, lora__lora_alpha=float(2 * rank))
        params = {"lora.r": rank, "alpha_over_r": 2}
        origin = config.origin.model_copy(update={"params": params})
        add_trial(study, config.model_copy(update={"origin": origin}), 2.0)
    table = trials_table(study)
    assert table.attrs["searched"] == ["lora.r", "alpha_over_r"]
    assert table.attrs["varied"] == ["lora.r", "alpha_over_r", "lora.lora_alpha"]
    assert list(table["alpha_over_r"]) == [2, 2]


def test_a_variable_may_have_the_name_of_a_column(tmp_path):
    study = make_study(tmp_path / "s")
    for number, device in enumerate(("auto", "cpu")):
        config = make_config(number, device=device)
        origin = config.origin.model_copy(update={"params": {"device": device, "value": number}})
        add_trial(study, config.model_copy(update={"origin": origin}), 2.0)
    table = trials_table(study)
    assert table.attrs["searched"] == ["config.device", "config.value"]
    assert list(table["config.device"]) == ["auto", "cpu"]
    assert list(table["device"]) == ["cpu", "cpu"]
    assert list(table["config.value"]) == [0, 1]
    assert list(table["value"]) == [2.0, 2.0]


def test_repeats_over_seeds_share_a_group(tmp_path):
    table = trials_table(seed_study(tmp_path / "s", {4: 2.0, 8: 2.1}, seeds=3))
    groups = table.groupby("group")["lora.r"].agg(["nunique", "size"])
    assert groups["nunique"].tolist() == [1, 1]
    assert groups["size"].tolist() == [3, 3]
    assert table.attrs["searched"] == ["lora.r"]


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "config.json"),
        ("config.json", "[1]", "not a configuration"),
        ("config.json", None, "config.json"),
        ("result.json", '{"state": "won"}', "result.json: state"),
        ("result.json", "\x00\xff", "result.json"),
    ],
)
def test_a_broken_folder_is_one_unreadable_row(tmp_path, file, content, says):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, lora__r=4), 2.0)
    broken = add_trial(study, make_config(1, lora__r=8), 2.0).path / file
    broken.unlink() if content is None else broken.write_text(content)
    table = trials_table(study)
    assert list(table["state"]) == ["complete", "unreadable"]
    assert says in table["problem"][1]
    assert str(table["lora.r"].dtype) == "Int64"
    assert "unreadable" in shown(table)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_no_number_never_wins(tmp_path, value):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, lora__r=4), 2.0)
    folder = TrialFolder.create(study.trial(1).path, make_config(1, lora__r=8))
    folder.write_result(Result(state="complete", eval_loss=value))
    assert list(ranked_trials(trials_table(study))["number"]) == [0, 1]


def test_other_objectives_are_the_value(tmp_path):
    goals = [{"metric": "tokens_per_second", "direction": "maximize"}]
    study = make_study(tmp_path / "s", {"objectives": goals})
    for number, pace in enumerate((0.2, 0.1, 0.4)):
        config = make_config(number, zero_stage=number)
        add_trial(study, config, 2.0, seconds_a_step=pace)
    table = trials_table(study)
    assert list(ranked_trials(table)["number"]) == [1, 0, 2]
    assert table["value"][1] == pytest.approx(80_000 / 10.4)
    assert table["eval_loss"][1] == 2.0


def test_every_metric_that_can_be_optimised_has_a_column(tmp_path):
    study = make_study(tmp_path / "s")
    data = DataSummary(train_rows=9, eval_rows=1, eval_tokens=3, eval_bytes=8)
    add_trial(study, make_config(0, lora__r=4), 2.0, data=data)
    table = trials_table(study)
    result = study.trial(0).read_result()
    assert metrics.of_result(result, "eval_loss_per_byte") == 2.0 * 3 / 8
    for name in metrics.METRICS:
        assert table[metric_column(name)][0] == metrics.of_result(result, name), name


def test_files_hold_the_whole_table(tmp_path, table):
    csv, parquet = write_table(table, tmp_path / "report")
    back = pd.read_parquet(parquet)
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert back.dtypes["best_step"] == table.dtypes["best_step"]
    assert pd.read_csv(csv)["value"].tolist() == pytest.approx(table["value"].tolist(), nan_ok=True)


def test_the_printed_table_is_best_first_with_pruned_and_failed_apart(table):
    text = shown(table)
    order = [text.index(part) for part in ("best first", "2.3019", "Pruned", "Failed", "diverged")]
    assert order == sorted(order)
    assert max(map(len, text.splitlines())) <= 100
    assert "* searched: lora.r, training.learning_rate" in " ".join(text.split())


def test_many_searched_columns_still_fit(tmp_path):
    study = make_study(tmp_path / "s")
    for number in range(3):
        params = {f"training__{name}": 0.1 * (number + 1) for name in (
            "weight_decay", "warmup_ratio", "adam_beta1", "adam_beta2", "max_grad_norm",
            "learning_rate", "label_smoothing_factor", "neftune_noise_alpha",
        )}  # fmt: skip
        add_trial(study, make_config(number, **params), 2.0 + number)
    assert max(map(len, shown(trials_table(study)).splitlines())) <= 100


@pytest.mark.parametrize("states", [[], ["failed"], ["complete"]])
def test_a_small_study_has_a_table_and_a_report(tmp_path, states):
    study = make_study(tmp_path / "s <b> | 🦙")
    for number, state in enumerate(states):
        add_trial(study, make_config(number), 2.0, state)
    assert f"{len(states)} {states[0]}" in shown(trials_table(study)) if states else True
    text = write(study).read_text(encoding="utf-8")
    assert "<b>" not in text
    assert "🦙" in text


def test_the_report_answers_first(study):
    page = write(study)
    text = page.read_text(encoding="utf-8")
    assert page == study.report / "report.md"
    assert text.index("Rank 16 has the lowest eval loss, 2.3019") < text.index("## ")
    assert "the noise is unknown" in text
    assert "trials/00015/train.log" in text
    assert json.dumps(True) in text


def test_importing_results_loads_no_table_or_plot():
    code = (
        "import results, sys; print([m for m in ('pandas', 'plotly', 'scipy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_long_texts_are_cut_before_a_searched_column_is_left_out(tmp_path):
    study = make_study(tmp_path / "modules")
    modules = [["q_proj", "v_proj", "gate_proj", "up_proj"], "all-linear"]
    for number, target in enumerate(modules):
        drawn = {"lora__target_modules": target, "lora__use_rslora": bool(number),
                 "lora__lora_alpha": 8 + number, "lora__r": 4 * (1 + number),
                 "training__learning_rate": 1.25e-3 * (1 + number)}  # fmt: skip
        add_trial(study, make_config(number, **drawn), 2.0 + number)
    out = io.StringIO()
    print_table(trials_table(study), Console(file=out, width=80, color_system=None))
    for title in ("targets*", "rsLoRA*", "alpha*", "r*", "learning rate*"):
        assert title in out.getvalue()
    assert "…" in out.getvalue()
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_why_a_trial_failed_is_said_in_a_narrow_table_too(tmp_path):
    study = make_study(tmp_path / "optimizers")
    message = "ImportError: You need to install `galore_torch` in order to use GaLore optimizers"
    cause = Cause(kind="error", message=message, step=0)
    for number, optimizer in enumerate(("galore_adamw", "adafactor")):
        config = make_config(number, lora__r=4 + number, training__optim=optimizer)
        add_trial(study, config, None, state="failed", cause=cause)
    out = io.StringIO()
    print_table(trials_table(study), Console(file=out, width=80, color_system=None))
    assert "first line" in out.getvalue()
    assert "galore_torch" in out.getvalue()
