"""The built-in model can be made again."""

import inspect
import shutil

from transformers import AutoModelForCausalLM

from trial import builtin
from trial.builtin import frozen_rows, make_tiny_llama
from trial.builtin.code_rows import flat


def test_docstrings_are_removed():
    source = (
        '"""Module."""\nimport a\nclass B:\n    """Two\n    lines."""\n    x = "kept"  # kept\n'
    )
    stripped = make_tiny_llama.without_docstrings(source)
    assert stripped == 'import a\nclass B:\n    x = "kept"  # kept\n'


def test_the_model_can_be_made(tmp_path, capsys, one_thread):
    recipe = make_tiny_llama.Recipe(steps=2, warmup=1, batch_size=2, length=16)
    make_tiny_llama.main(tmp_path, recipe, [inspect.getsource(shutil)] * 2)
    assert builtin.content_hash(tmp_path) in capsys.readouterr().out
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    assert config.vocab_size <= make_tiny_llama.VOCABULARY
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {file.name for file in builtin.model_path().iterdir()}


def test_the_answers_of_the_rows_were_not_in_the_pretraining_text():
    text = flat(" ".join(make_tiny_llama.corpus()))
    assert len(text) > 2e6
    for dataset in ("python-docs", "code-forget", "code-retain"):
        seen = [row for row in frozen_rows.read(dataset) if flat(row["answer"]) in text]
        assert seen == []
