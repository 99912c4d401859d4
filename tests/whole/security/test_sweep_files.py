"""Nothing in a sweep file runs code: neither YAML tags nor expressions."""

from __future__ import annotations

import pytest
import yaml
from helpers.command import invoke

TAGS = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:subprocess.Popen [['touch', '{marker}']]",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["name", "base", "space", "linked"])
def test_no_tag_of_a_sweep_file_runs_code(tag, place, tmp_path):
    marker = tmp_path / "went-off"
    text = tag.format(marker=marker)
    source, base = tmp_path / "x.yaml", tmp_path / "base.yaml"
    rows = {
        "name": f"name: {text}\nspace: {{lora.r: [2]}}\n",
        "base": f"base: {{device: {text}}}\nspace: {{lora.r: [2]}}\n",
        "space": f"space: {{lora.r: {text}}}\n",
        "linked": "base: base.yaml\nspace: {lora.r: [2]}\n",
    }
    source.write_text(rows[place] + "sampler: grid\n")
    base.write_text(f"device: {text}\n")
    done = invoke("check", source)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    assert not marker.exists()


EXPRESSIONS = ["__import__('os').system('touch {m}')", "open('{m}', 'w')", "().__class__"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_no_expression_of_a_sweep_file_runs_code(expression, tmp_path):
    marker = tmp_path / "went-off"
    space = {"lora.r": [2], "lora.lora_alpha": {"expression": expression.format(m=marker)}}
    content = {"space": space, "sampler": "grid"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    done = invoke("check", tmp_path / "x.yaml")
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    assert not marker.exists()
