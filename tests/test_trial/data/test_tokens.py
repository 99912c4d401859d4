"""The prompt that an answer is generated from ends where its first token begins in training."""

import pytest
from helpers.training.letters import LETTERS, SPECIAL, letter_tokenizer

from trial.data.examples import Row, pair
from trial.data.messages import Message
from trial.data.tokens import TokenDataset, TokenSettings, tokenize_rows

CHAT = Row(
    (
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    ),
    "chat",
)


@pytest.mark.parametrize(
    ("row", "train_on", "expected"),
    [
        (pair("ab", "cd"), "all", ("ab", "cd</s>")),
        (CHAT, "all", ("ab</s>\nc", "d</s>")),
        (CHAT, "last", ("ab</s>\nc", "d</s>")),
        (Row((Message("assistant", "text"),), "text"), "all", ("t", "ext</s>")),
    ],
)
def test_prompt_and_answer_of_the_last_answer(row, train_on, expected):
    tokenizer = letter_tokenizer()
    tokens = tokenize_rows([pair("x", "y"), row], TokenSettings("plain", 64, train_on), tokenizer)
    found = TokenDataset(tokens, 64, 0).prompt_and_answer(1)
    names = [*SPECIAL, *LETTERS]
    assert tuple("".join(names[i] for i in ids) for ids in found) == expected


def test_no_rows_are_no_tokens():
    tokens = tokenize_rows([], TokenSettings("plain", 64), letter_tokenizer())
    assert (len(tokens.ids), tokens.spans.shape, tokens.counted()) == (0, (0, 2), 0)
