"""The figures of unlearning, from what a model was asked: numbers in, one number out.

Definitions are TOFU's (Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs",
arXiv:2401.06121, section 2.2) unless said otherwise. No torch, no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import ks_2samp

Floats = np.ndarray[tuple[int], np.dtype[np.float64]]

_WORD = re.compile(r"[^\W_]+")


def answer_probability(nats: Floats, tokens: Floats) -> Floats:
    """P(answer | question) ** (1 / tokens) of each answer: the geometric mean over its tokens."""
    return np.exp(-nats / tokens)


def per_token(nats: Floats, tokens: Floats) -> float:
    """Nats per token over all rows: one sum over one count."""
    return float(nats.sum() / tokens.sum())


def truth_ratio(right: Floats, wrong: Floats, owners: Sequence[int]) -> Floats:
    """By row, the mean probability of its wrong answers over that of the right one.

    `right` holds a probability per row, of the paraphrased answer where there is one; `wrong` one
    for each wrong answer, `owners` the row it belongs to. A row without wrong answers has NaN.
    """
    sums = np.bincount(owners, weights=wrong, minlength=len(right))
    counts = np.bincount(owners, minlength=len(right))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts / right, dtype=np.float64)


def forgotten_ratio(ratios: Floats) -> float:
    """Mean of min(R, 1/R) on the forget set: 1 where right and wrong answers look alike."""
    known = ratios[~np.isnan(ratios)]
    with np.errstate(divide="ignore"):
        return float(np.minimum(known, 1 / known).mean())


def retained_ratio(ratios: Floats) -> float:
    """Mean of max(0, 1 - R) on a set to retain: 1 where wrong answers are out of the question."""
    known = ratios[~np.isnan(ratios)]
    return float(np.maximum(0.0, 1 - known).mean())


def forget_quality(unlearned: Floats, retrained: Floats) -> float:
    """P-value of the two-sample Kolmogorov-Smirnov test on two models' forget-set truth ratios.

    High when the unlearned model cannot be told from one that never saw the forget set.
    """
    pair = (ratios[~np.isnan(ratios)] for ratios in (unlearned, retrained))
    return float(ks_2samp(*pair).pvalue)


def words(text: str) -> list[str]:
    """Letters and digits between anything else, in lower case."""
    return _WORD.findall(text.lower())


def rouge_l_recall(said: str, reference: str) -> float:
    """Longest common subsequence of words, as a share of the reference's words.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", without a stemmer (TOFU's
    package stems: its figures are a little higher). Letters are those of any language; that package
    knows ASCII alone. 0 for a reference without words.
    """
    ours, theirs = words(said), words(reference)
    if not theirs:
        return 0.0
    longest = [0] * (len(theirs) + 1)
    for word in ours:
        before = longest[:]
        for place, other in enumerate(theirs, 1):
            longest[place] = (
                before[place - 1] + 1 if word == other else max(before[place], longest[place - 1])
            )
    return longest[-1] / len(theirs)


def harmonic_mean(values: Sequence[float]) -> float:
    """Of values from 0 up; 0 as soon as one is."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def trade_off(forget_probability: float, model_utility: float) -> float:
    """One figure for both sides: harmonic mean of 1 - forget probability and model utility.

    Ours, for pruners and for sweeps of one objective; it falls to 0 with either side.
    """
    return harmonic_mean([1 - forget_probability, model_utility])
