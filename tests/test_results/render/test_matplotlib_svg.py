"""Pictures by Matplotlib."""

from __future__ import annotations

from xml.etree import ElementTree

from results.render.matplotlib_svg import svg


def test_a_picture_is_the_same_every_time(chart):
    first, again = svg(chart), svg(chart)
    assert first == again
    text = " ".join(ElementTree.fromstring(first).itertext())
    assert "Title & <more>" in text
    assert "$one$" in text
