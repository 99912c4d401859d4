"""The metrics of unlearning as functions of a model's losses and texts: numbers in, a number out.

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


def answer_probability(losses: Floats, tokens: Floats) -> Floats:
    """P(answer | question) ** (1 / tokens) of each answer: the geometric mean over its tokens.

    `losses` is -log P(answer | question), [rows]; `tokens` the number of tokens, [rows].
    """
    return np.exp(-losses / tokens)


def per_token(losses: Floats, tokens: Floats) -> float:
    """Cross-entropy in nats per token over all rows: one sum over one count."""
    return float(losses.sum() / tokens.sum())


def truth_ratio(right: Floats, wrong: Floats, wrong_answer_rows: Sequence[int]) -> Floats:
    """[rows]: mean probability of a row's wrong answers over the probability of its right answer.

    Args:
        right: [rows], of the paraphrased answer where there is one.
        wrong: [wrong answers].
        wrong_answer_rows: [wrong answers], the row of each; a row without any gets NaN.
    """
    sums = np.bincount(wrong_answer_rows, weights=wrong, minlength=len(right))
    counts = np.bincount(wrong_answer_rows, minlength=len(right))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts / right, dtype=np.float64)


def forgotten_ratio(ratios: Floats) -> float:
    """Mean of min(R, 1/R) on the forget set: 1 if right and wrong answers are equally likely."""
    known = ratios[~np.isnan(ratios)]
    with np.errstate(divide="ignore"):
        return float(np.minimum(known, 1 / known).mean())


def retained_ratio(ratios: Floats) -> float:
    """Mean of max(0, 1 - R) on the retain set: 1 if wrong answers have no probability."""
    known = ratios[~np.isnan(ratios)]
    return float(np.maximum(0.0, 1 - known).mean())


def forget_quality(unlearned: Floats, retrained: Floats) -> float:
    """P-value of the two-sample Kolmogorov-Smirnov test on two models' forget-set truth ratios.

    High if the unlearned model cannot be distinguished from one that never saw the forget set.
    """
    pair = (ratios[~np.isnan(ratios)] for ratios in (unlearned, retrained))
    return float(ks_2samp(*pair).pvalue)


def words(text: str) -> list[str]:
    """The text's words in lower case: runs of letters and digits of any language."""
    return _WORD.findall(text.lower())


def rouge_l_recall(candidate: str, reference: str) -> float:
    """Length of the longest common subsequence of words over the reference's number of words.

    ROUGE-L of Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". TOFU uses the
    package rouge_score with a stemmer and ASCII words: its values are slightly higher. 0 for a
    reference without words.
    """
    candidate_words, reference_words = words(candidate), words(reference)
    if not reference_words:
        return 0.0
    # lengths[i]: of the subsequence common to the candidate so far and i words of the reference.
    lengths = [0] * (len(reference_words) + 1)
    for word in candidate_words:
        before = lengths[:]
        for i, other in enumerate(reference_words, 1):
            lengths[i] = before[i - 1] + 1 if word == other else max(before[i], lengths[i - 1])
    return lengths[-1] / len(reference_words)


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of values of at least 0; 0 if one of them is 0."""
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)


def trade_off(forget_probability: float, model_utility: float) -> float:
    """Harmonic mean of 1 - forget probability and model utility; 0 if either is 0.

    Our own, for pruners and single-objective sweeps, which need one number.
    """
    return harmonic_mean([1 - forget_probability, model_utility])
