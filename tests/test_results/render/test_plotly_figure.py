"""Figures for Plotly."""

from __future__ import annotations

import json

from results.render.plotly_figure import figure, figure_json


def test_a_figure_escapes_and_has_no_nan(chart):
    text = figure_json(chart)
    assert "<" not in text
    assert "NaN" not in text
    made = json.loads(text)
    assert made["data"][0]["text"][0] == "a<br>&lt;i&gt;b&lt;/i&gt;"
    assert made["data"][0]["y"] == [2, None]
    assert made["layout"]["xaxis"]["range"] == [-1, 2]
    assert made["data"][1]["error_y"]["array"] == [1, 1]
    assert figure(chart)["data"][2]["marker"]["color"] == "$c1"
