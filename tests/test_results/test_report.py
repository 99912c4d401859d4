"""The report as files: same bytes for same folders, nothing lost, nothing unescaped."""

from __future__ import annotations

import importlib
import json
import math
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.results import (
    SPEC,
    add_trial,
    charts,
    make_config,
    make_study,
)

from results import ReportOptions, preload, write, write_report
from results.render.markdown import escape
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Result


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_folders_give_the_same_bytes(study, html, tmp_path):
    copy = StudyFolder(tmp_path / study.name)
    shutil.copytree(study.path, copy.path, ignore=shutil.ignore_patterns("report"))
    write_report(copy)
    made = files(copy.report)
    assert set(made) >= {"report.html", "report.md", "trials.csv", "trials.parquet"}
    assert made == {name: (study.report / name).read_bytes() for name in made}
    write_report(copy, ReportOptions(made="2026-11-23 20:00"))
    again = files(copy.report)
    assert b"2026-11-23 20:00" in again["report.html"]
    assert [name for name in made if made[name] != again[name]] == ["report.html", "report.md"]


def test_plotly_is_there_once_and_nothing_is_fetched(html):
    assert html.count("Plotly, Inc.") == 1
    assert len(html) < 6_000_000
    page = html.split("<script>", 1)[0]
    assert re.findall(r'(?:src|href)="(?!#|\.\./|data:|report\.|trials\.)[^"]*"', page) == []
    assert "default-src 'none'" in page
    assert "showSendToCloud: false" in html


def test_html_and_markdown_hold_the_same_in_the_same_order(html, markdown):
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", html)[1:]
    assert headings == re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", html)
    assert titles == re.findall(r"^### (.*)$", markdown, re.MULTILINE)
    assert headings == ["Leaderboard", "LoRA", "The search", "What it cost", "Pruned", "Failures",
                        "All trials", "Provenance", "How this was computed"]  # fmt: skip


def test_every_picture_is_there_and_is_svg(study, markdown):
    named = re.findall(r"\((figures/[\w.]+\.svg)\)", markdown)
    assert len(named) > 10
    assert {f"figures/{path.name}" for path in (study.report / "figures").iterdir()} == set(named)
    for name in named:
        assert ElementTree.parse(study.report / name).getroot().tag.endswith("svg")


def test_figures_are_what_plotly_accepts(html):
    import plotly.graph_objects as go

    found = charts(html)
    assert {"rates", "ranks", "scale", "curves", "history", "parallel", "timeline"} <= set(found)
    for figure in found.values():
        text = re.sub(r'"\$\w+"', '"#000000"', json.dumps(figure))
        go.Figure(json.loads(text))


def test_every_complete_trial_is_a_dot_of_the_rate_plot(html):
    dots = [trace for trace in charts(html)["rates"]["data"] if trace.get("mode") == "markers"]
    drawn = {(x, y) for trace in dots if trace["name"].startswith("r ") for x, y in
             zip(trace["x"], trace["y"], strict=True)}  # fmt: skip
    assert len(drawn) == 13
    best = next(trace for trace in dots if trace["name"] == "best")
    assert best["x"] == [0.001, 0.001, 0.001]
    assert set(zip(best["x"], best["y"], strict=True)) <= drawn


def test_pruned_and_failed_trials_do_not_ruin_an_axis(html):
    low, high = charts(html)["history"]["layout"]["yaxis"]["range"]
    assert 2.2 < low < 2.31
    assert 2.6 < high < 3.0


def test_failures_are_told_with_kind_settings_cause_and_log(html, markdown):
    for page in (html, markdown):
        assert "eval loss is nan at step 20" in page
        assert "trials/00016/train.log" in page
    assert "Allocation failed for size::42" in markdown
    assert 'href="../trials/00015/train.log"' in html


def test_provenance_says_what_it_was_made_with(html, markdown):
    for said in ("spaces/lora_rank.yaml", "0123456789abcdef", "2.13.0", "d" * 16, "m" * 16):
        assert said in html
        assert said in markdown
    assert "python -m trial again/00007" in markdown


NASTY = "<script>alert('x')</script> \"q\" | `b` $x$ & 🦙 ünï"


def test_names_with_html_quotes_and_emoji_are_shown_as_they_are(tmp_path):
    study = make_study(tmp_path / "s", {**SPEC, "question": NASTY})
    record = study.read_record()
    study.write_record(record.model_copy(update={"name": NASTY}))
    for number, target in enumerate((NASTY, "q_proj", "v_proj")):
        config = make_config(number, lora__target_modules=target)
        cause = Cause(kind="error", message=NASTY) if number else None
        add_trial(study, config, 2.0 + number, "failed" if number == 1 else "complete", cause=cause)
    page = write_report(study)
    html = page.read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in html
    assert "🦙" in html
    for figure in charts(html).values():
        assert "<script" not in json.dumps(figure)
    markdown = page.with_suffix(".md").read_text(encoding="utf-8")
    outside_code = re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_code


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<b>", "&lt;b&gt;"),
        ("two\nlines", "two lines"),
        ("`code`", "`code`"),
        ("a*b_c _d", r"a\*b_c \_d"),
    ],
)
def test_markdown_is_escaped(text, shown):
    assert escape(text) == shown


BROKEN = {
    "torn metrics": lambda t: t.metrics.write_bytes(t.metrics.read_bytes()[:-20]),
    "foreign metrics": lambda t: t.metrics.write_text(
        '[]\n{"kind": "eval"}\nno\n{"kind": "eval", "step": "x"}\n{"kind": "eval", "step": null}\n'
    ),
    "nan metrics": lambda t: t.metrics.write_text(
        '{"kind": "eval", "step": 5, "eval_loss": NaN, "time": 1.0}\n'
    ),
    "bytes for metrics": lambda t: t.metrics.write_bytes(b'"eval"\xff\x00\n'),
    "no metrics": lambda t: t.metrics.unlink(),
    "no attempts": lambda t: t.attempts.unlink(),
    "broken result": lambda t: t.result.write_text("{"),
    "broken config": lambda t: t.config.write_text(""),
    "config of odd types": lambda t: t.config.write_text(
        '{"lora": 3, "training": {"learning_rate": "high", "seed": "x"}, "origin": [1]}'
    ),
    "empty folder": lambda t: [file.unlink() for file in t.path.iterdir()],
}


@pytest.mark.parametrize("good", [0, 2])
def test_there_is_a_report_whatever_is_broken(tmp_path, good):
    study = make_study(tmp_path / "s")
    for number, harm in enumerate(BROKEN.values()):
        harm(add_trial(study, make_config(number, lora__r=16), 2.5))
    for number in range(50, 50 + good):
        add_trial(study, make_config(number, lora__r=4), 2.4)
    text = write(study).read_text(encoding="utf-8")
    assert "3 unreadable" in text
    assert f"{len(BROKEN) - 3 + good} complete" in text
    assert "2.5000" in text


def test_the_best_trials_may_have_lost_their_curves(tmp_path):
    study = make_study(tmp_path / "s")
    for number, state in enumerate(("complete", "complete", "pruned", "failed")):
        folder = add_trial(study, make_config(number, lora__r=4 + number), 2.0 + number, state)
        if number == 0:
            folder.metrics.unlink()
    assert "Learning curves" in write(study).read_text(encoding="utf-8")


@pytest.mark.parametrize("harm", [lambda file: file.write_text("{"), lambda file: file.unlink()])
def test_a_study_without_its_record_has_a_report(tmp_path, harm):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0), 2.6)
    harm(study.record)
    text = write(study).read_text(encoding="utf-8")
    assert "could not be read" in text
    assert "2.6000" in text


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ([], "No trial has been started yet."),
        (["complete"], "only configuration that was completed"),
        (["failed", "failed"], "The commonest cause of failure: boom"),
        (["pruned"], "No trial has been completed yet"),
        (["pruned"], "1 trial took "),
        (["duplicate"], "No trial has been completed yet"),
    ],
)
def test_small_studies_have_a_report(tmp_path, states, says):
    study = make_study(tmp_path / "s")
    for number, state in enumerate(states):
        cause = Cause(kind="error", message="boom") if state == "failed" else None
        add_trial(study, make_config(number, lora__r=4 + number), 2.0, state, cause=cause)
    assert says in write(study).read_text(encoding="utf-8")


@pytest.mark.parametrize("values", [(math.nan, math.inf, -math.inf), (1e300, 0.0, -1.0)])
def test_odd_values_have_a_report(tmp_path, values):
    study = make_study(tmp_path / "s")
    for number in range(4):
        add_trial(study, make_config(number, lora__r=4 + number), 2.0 + number)
    for number, value in enumerate(values, start=9):
        odd = TrialFolder.create(study.trial(number).path, make_config(number, lora__r=number))
        odd.write_result(Result(state="complete", eval_loss=value))
    assert "2.0000" in write(study).read_text(encoding="utf-8")


def test_a_running_study_has_a_report(tmp_path):
    study = make_study(tmp_path / "s")
    for number in range(3):
        folder = add_trial(study, make_config(number, lora__r=4 + number), 2.0)
        folder.result.unlink()
    text = write(study).read_text(encoding="utf-8")
    assert "3 unfinished" in text
    assert "3 trials are still running or interrupted: this is the state so far." in text
    assert "Learning curves" in text


def test_a_failing_import_ahead_of_time_prints_nothing(monkeypatch, capfd):
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    preload()
    assert not any(capfd.readouterr())


def test_it_removes_its_own_earlier_figures_and_nothing_else(study, html, tmp_path):
    copy = StudyFolder(tmp_path / study.name)
    shutil.copytree(study.path, copy.path)
    figures = copy.report / "figures"
    (figures / "of-an-earlier-report.svg").touch()
    (figures / "notes.txt").write_text("mine")
    write_report(copy)
    kept = {path.name for path in (study.report / "figures").iterdir()}
    assert {path.name for path in figures.iterdir()} == kept | {"notes.txt"}
    elsewhere = figures.rename(tmp_path / "elsewhere")
    (elsewhere / "drawing.svg").touch()
    figures.symlink_to(elsewhere)
    write_report(copy)
    assert (elsewhere / "drawing.svg").exists()
    assert {path.name for path in figures.iterdir()} == kept
