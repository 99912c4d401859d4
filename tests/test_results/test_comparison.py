"""The comparison of trials side by side, in one study and over several."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from helpers.results import (
    add_trial,
    charts,
    make_config,
    make_study,
    seed_study,
)

from results import compare, write

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
