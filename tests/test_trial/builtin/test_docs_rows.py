"""Questions and answers drawn from source: what is asked about, and what the answer is."""

import pytest

from trial.builtin.docs_rows import docs_rows, summary

SOURCE = '''
LIMIT = 3
"""Most trials that run at once."""
_hidden = 4
"""Private, so nobody is asked about it."""

class Study:
    """All trials of one sweep.

    More about it.
    """

    name: str
    """The folder's name, in lower case."""

    def ask(self, number, *, seed):
        """Draw the parameters of one trial."""

    def _draw(self):
        """Draw from the sampler of the sweep."""

def again():
    """Draw the parameters of one trial."""

def short():
    """Too short."""
'''


def test_public_things_are_asked_about_once_each():
    rows = docs_rows({"sweep/study/__init__.py": SOURCE})
    answers = {row["question"].split("`")[1]: row["answer"] for row in rows}
    assert answers == {
        "sweep.study.LIMIT": "Most trials that run at once.",
        "sweep.study.Study": "All trials of one sweep.",
        "sweep.study.Study.name": "The folder's name, in lower case.",
        "sweep.study.Study.ask(number, seed)": "Draw the parameters of one trial.",
    }


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the  answer\n   to everything.\n\nMore.", "Return the answer to everything."),
        ("Too short.", ""),
        (">>> print('an example, not an answer')", ""),
        ("One good sentence here. " + "x" * 200, "One good sentence here."),
        ("x" * 200, ""),
    ],
)
def test_summaries(docstring, expected):
    assert summary(docstring) == expected
