"""The report as files: same bytes for same folders, nothing lost, nothing unescaped."""

from __future__ import annotations

import itertools
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
    make_config,
    make_study,
    rank_study,
    seed_study,
    zero_study,
)

from results import ReportOptions, compare, recommended, trials_table, write, write_report
from results.render.markdown import escape
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Result


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = rank_study(tmp_path_factory.mktemp("runs") / "ranks")
    write_report(study)
    return study


@pytest.fixture(scope="module")
def html(study):
    return (study.report / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(study):
    return (study.report / "report.md").read_text(encoding="utf-8")


def charts(html: str) -> dict[str, dict]:
    found = re.findall(
        r'<script type="application/json" id="data-(\w+)">(.*?)</script>', html, re.DOTALL
    )
    return {key: json.loads(text) for key, text in found}


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


def test_the_answer_of_a_search_without_repeats(markdown):
    answer = markdown.split("## ")[0]
    assert "Rank 16 has the lowest eval loss" in answer
    assert "the noise is unknown" in answer
    assert "The best learning rate is 0.001 at every rank." in answer
    assert "5% pruned and 4% failed" in answer
    assert "1 trial ran out of memory" in answer


def test_the_answer_names_a_tie_and_takes_the_cheap_one(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.301, 64: 2.3}, noise=0.01)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "No single winner: ranks 16 and 64 tie" in answer
    assert "take the cheapest, r 16 (trials 5" in answer
    assert "The best beats r 4" in answer
    assert "outside the noise" in answer


def test_the_answer_crowns_a_winner_with_its_margin(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.3})
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "**Rank 16 wins: r 16" in answer
    assert "paired t test over 5 shared seeds" in answer


def test_the_best_value_at_an_edge_says_widen(tmp_path):
    study = make_study(tmp_path / "s", {})
    for number, rate in enumerate((1e-5, 1e-4, 1e-3, 1e-2)):
        config = make_config(number, training__learning_rate=rate)
        add_trial(study, config, 3 - math.log10(rate) / 10)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "The best learning rate, 0.01, lies at the upper end" in answer
    assert "(1e-5 to 0.01): widen it" in answer


def test_what_ties_over_the_whole_range_is_no_edge(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.3, 16: 2.301, 64: 2.302}, noise=0.01)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "take the cheapest, r 4 " in answer
    assert "widen" not in answer


def test_rates_that_tie_cost_the_same_and_the_best_is_taken(tmp_path):
    """A busy machine makes equal work look dearer: the times say nothing of the rates."""
    study, seeds = make_study(tmp_path / "s"), range(3)
    for number, (rate, seed) in enumerate(itertools.product((1e-4, 2e-4, 1e-2), seeds)):
        config = make_config(number, training__learning_rate=rate, training__seed=seed)
        loss = {1e-4: 2.300, 2e-4: 2.301, 1e-2: 2.9}[rate] + 0.01 * ((seed + number // 3) % 3)
        add_trial(study, config, loss, seconds_a_step=0.1 if rate == 2e-4 else 0.2)
    text = write(study).read_text(encoding="utf-8")
    assert "they cost the same, so take learning rate 1e-4" in text.split("## ")[0]
    assert "the machine's doing" in text


def test_the_only_rate_of_a_rank_is_not_called_its_best(tmp_path):
    study = make_study(tmp_path / "s")
    tried = [(4, 1e-3), (4, 1e-2), (16, 1e-3), (16, 1e-2), (64, 1e-5)]
    for number, (rank, rate) in enumerate(tried):
        loss = 2 + rate + (rank == 64)
        add_trial(study, make_config(number, lora__r=rank, training__learning_rate=rate), loss)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "The best learning rate is 0.001 at r 4 and 0.001 at r 16." in answer


def test_rates_side_by_side_are_not_joined_from_dot_to_dot(tmp_path):
    """Six near rates of a bowl: a parabola, not a zigzag through their noise."""
    study = make_study(tmp_path / "s")
    for number, rate in enumerate((1e-4, 9e-4, 1e-3, 1.01e-3, 1.2e-3, 1e-2)):
        config = make_config(number, training__learning_rate=rate)
        loss = 2.3 + 0.1 * (math.log10(rate) + 3) ** 2 + 0.01 * (-1) ** number
        add_trial(study, config, loss)
    figure = charts(write_report(study).read_text(encoding="utf-8"))["rates"]
    line = next(trace for trace in figure["data"] if trace["mode"] == "lines")
    assert len(line["x"]) == 60


def test_a_pruned_trial_that_led_its_rank_is_pointed_out(tmp_path):
    study = make_study(tmp_path / "s")
    for number, (rank, loss, state) in enumerate(
        [(4, 2.5, "complete"), (4, 2.4, "pruned"), (16, 2.3, "complete"), (16, 2.35, "pruned")]
    ):
        config = make_config(number, lora__r=rank, training__learning_rate=1e-4 * (number + 1))
        add_trial(study, config, loss, state)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "Pruning may have wronged rank 4:" in answer
    assert "(trial 1)" in answer


def test_a_price_turns_device_time_into_money(tmp_path):
    spec = {**SPEC, "resources": {"price_per_device_hour": 3600.0}}
    study = make_study(tmp_path / "s", spec)
    spent = add_trial(study, make_config(0), 2.0).read_result().seconds.total
    text = write_report(study, ReportOptions(currency="EUR")).with_suffix(".md").read_text()
    assert f"{spent:.2f} EUR" in text
    text = (
        write_report(study, ReportOptions(price_per_device_hour=7200.0))
        .with_suffix(".md")
        .read_text()
    )
    assert f"{2 * spent:.2f}" in text


def test_stages_that_disagree_are_warned_about(tmp_path):
    agree = write(zero_study(tmp_path / "a")).read_text(encoding="utf-8")
    apart = write(zero_study(tmp_path / "b", drift=0.05)).read_text(encoding="utf-8")
    assert "agree in eval loss to within rounding" in agree
    assert "Warning: ZeRO-3 and ZeRO-0 disagree in eval loss by 2%" in apart
    assert "ZeRO-0 is the fastest" in apart
    assert "ZeRO-3 needs the least memory, 300 MB a device against 900 MB with ZeRO-0" in apart
    assert agree.index("## ZeRO stages") < agree.index("## Leaderboard")


def test_memory_of_a_cpu_ranks_no_stage(tmp_path):
    """A warm worker's process grows from trial to trial: the order of the trials would win."""
    text = write(zero_study(tmp_path / "s", device="cpu")).read_text(encoding="utf-8")
    answer = text.split("## ")[0]
    assert "ZeRO-0 is the fastest" in answer
    assert "needs the least memory cannot be told here" in answer
    assert "300 MB" not in answer


def test_no_deepspeed_has_a_name_everywhere(tmp_path):
    goals = [{"metric": name} for name in ("seconds_per_step", "peak_memory_bytes")]
    study = make_study(tmp_path / "s", {"objectives": goals})
    for number, (stage, seed) in enumerate(itertools.product((None, 2), range(2))):
        config = make_config(number, zero_stage=stage, training__seed=seed)
        add_trial(study, config, 2.5, memory=600_000_000 + 10_000_000 * number)
    page = write_report(study)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "the base" not in text
    assert "best peak memory: 605 MB" in text
    assert "± 7.07 MB" in text
    assert "peak memory bytes" not in text
    figures = charts(page.read_text(encoding="utf-8"))
    assert figures["objectives"]["layout"]["xaxis"]["tickformat"] == "~s"
    assert figures["slice_zero_stage"]["layout"]["xaxis"]["ticktext"] == ["ZeRO-2", "no DeepSpeed"]


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
        odd.write_result(Result(state="complete", value=value))
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


# Compare


def test_compare_shows_only_what_differs(study):
    page = compare([study], [7, 8, 5, 15])
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    table = text.split("**Settings that differ**")[1].split("settings are equal")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][
        2:
    ] == ["lora.r", "training.learning_rate"]
    assert "**Trial 7 has the lowest eval loss, 2.3019" in text
    assert "nobody knows whether that is noise" in text
    assert (
        "Without a final value: trial 5 (pruned at step 30), trial 15 (failed at step 20)" in text
    )
    assert set(charts(page.read_text(encoding="utf-8"))) == {"by_step", "by_tokens", "by_device"}


def test_compare_pairs_the_seeds_of_two_studies(tmp_path):
    one = seed_study(tmp_path / "one", {4: 2.5}, noise=0.002, shared=0.3)
    two = seed_study(tmp_path / "two", {16: 2.49}, noise=0.002, shared=0.3)
    text = compare([one, two]).with_suffix(".md").read_text(encoding="utf-8")
    assert "**two:0 has the lowest eval loss" in text
    assert "paired t test over 5 seeds" in text


def confirmed_study(path):
    """Ranks of a search, seed 0, and two of them repeated with seeds 1 and 2 to confirm them."""
    study = make_study(path)
    for number, (rank, loss) in enumerate(((16, 2.30), (4, 2.40), (64, 2.50), (32, 2.45))):
        add_trial(study, make_config(number, lora__r=rank, training__seed=0), loss)
    for number, (rank, seed) in enumerate(itertools.product((16, 4, 64), (1, 2)), start=4):
        config = make_config(number, lora__r=rank, training__seed=seed)
        origin = config.origin.model_copy(update={"confirms": {16: 0, 4: 1, 64: 2}[rank]})
        loss = {16: 2.33, 4: 2.41, 64: 2.50}[rank] + 0.004 * seed + 0.001 * (number % 3)
        add_trial(study, config.model_copy(update={"origin": origin}), loss)
    return study


def test_compare_takes_the_trials_that_a_search_has_picked(tmp_path):
    """Their own run is no part of the confirmed mean: they are complete all the same."""
    study = confirmed_study(tmp_path / "s")
    page = compare([study], [0, 1, 3]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Trial 0 has the lowest eval loss, 2.3375 on average over 2 seeds" in page
    assert "Trial 1 is 0.0790 behind (95% interval" in page
    assert "outside the noise" in page
    assert "Without a final value" not in page
    again = compare([study], [0, 4]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Trial 4 is the same configuration with another seed." in again


def test_compare_and_report_give_the_same_verdict(tmp_path):
    study = confirmed_study(tmp_path / "s")
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    page = compare([study], [4, 6]).with_suffix(".md").read_text(encoding="utf-8")
    interval = re.search(r"95% interval (\S+ to [^;,]+)[;,]", answer.split("The best beats")[1])
    assert f"95% interval {interval[1]}, paired t test over 2 seeds with the noise of 3" in page


def test_compare_leaves_the_names_of_studies_as_they_are(tmp_path):
    studies = [seed_study(tmp_path / name, {4: 2.5}) for name in ("lora_rank", "other")]
    told = []
    page = compare(studies, before=told.extend).with_suffix(".md").read_text(encoding="utf-8")
    assert page.startswith("# lora_rank:0 against other:0")
    assert [folder.path.parent.parent.name for folder in told] == ["lora_rank", "other"]


def test_the_recommended_trial_is_the_reports(tmp_path):
    """Not the single lowest value: the best run of the cheapest of those that tie."""
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.301, 64: 2.3}, noise=0.01)
    assert recommended(study) is None  # no trial has its weights
    for _, folder in study.all_trials():
        folder.adapter.mkdir()
    table = trials_table(study)
    assert recommended(study) == table[table["lora.r"] == 16].sort_values("value")["number"].iloc[0]


def test_compare_warns_of_different_data(tmp_path):
    study = make_study(tmp_path / "s")
    for number, data in enumerate(("a" * 8, "b" * 8)):
        add_trial(study, make_config(number, lora__r=4 + number), 2.0, data_hash=data)
    text = compare([study], [0, 1]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Warning: these trials used different data" in text


def test_compare_shows_generations_where_there_are_any(study):
    for number in (7, 8):
        line = json.dumps({"prompt": "What is LoRA?", "completion": f"answer {number}"})
        (study.trial(number).path / "samples.jsonl").write_text(line + "\n")
    text = compare([study], [7, 8, 2]).with_suffix(".md").read_text(encoding="utf-8")
    assert "| What is LoRA? | answer 7 | answer 8 | – |" in text  # noqa: RUF001
    for number in (7, 8):
        (study.trial(number).path / "samples.jsonl").unlink()


@pytest.mark.parametrize(
    ("asked", "says"),
    [([7, 999], "has no trial 999; it has 0 to 18"), (["x:1", 2], "is a number, got 'x:1'"),
     ([7], "takes 2 to 12 trials, got 1")],
)  # fmt: skip
def test_compare_refuses_what_is_not_there(study, asked, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        compare([study], asked)


def test_several_objectives_show_their_front(tmp_path):
    goals = [
        {"metric": "eval_loss", "direction": "minimize"},
        {"metric": "rouge", "direction": "maximize"},
    ]
    study = make_study(tmp_path / "s", {"objectives": goals})
    points = [(2.0, 0.5), (2.1, 0.9), (2.2, 0.4)]
    for number, (loss, rouge) in enumerate(points):
        config = make_config(number, lora__r=4 + number)
        add_trial(study, config, loss, metrics={"rouge": rouge})
    page = write_report(study)
    front = next(
        trace for trace in charts(page.read_text(encoding="utf-8"))["objectives"]["data"]
        if trace["name"] == "Pareto front"
    )  # fmt: skip
    assert set(zip(front["x"], front["y"], strict=True)) == {(0.5, 2), (0.9, 2.1)}
    assert "the Pareto front of eval loss and rouge" in page.with_suffix(".md").read_text()


def test_stages_with_repeats_say_what_the_noise_hides(tmp_path):
    goals = [{"metric": "seconds_per_step", "direction": "minimize"}]
    study = make_study(tmp_path / "s", {"objectives": goals})
    for number, (stage, seed) in enumerate(itertools.product((0, 1, 3), range(3))):
        config = make_config(number, zero_stage=stage, training__seed=seed)
        pace = {0: 0.10, 1: 0.101, 3: 0.3}[stage] * (1 + 0.02 * ((seed + stage) % 3))
        add_trial(study, config, 2.5, seconds_a_step=pace)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "is the fastest" not in answer
    assert "No single fastest stage: in seconds per step ZeRO-0 and ZeRO-1" in answer
    assert "±" in answer
