"""Render a page as one self-contained, interactive HTML file."""

from __future__ import annotations

from functools import cache
from typing import Any

from markupsafe import Markup

from results.page.chart import Chart
from results.page.page import Block, Code, Grid, Page, Text
from results.render import plotly_figure, templating

_MACROS = {Text: "text", Code: "code", Chart: "chart", Grid: "grid"}


def render(page: Page) -> str:
    """HTML of a page."""
    environment = templating.environment(html=True)
    environment.filters["figure"] = lambda chart: Markup(plotly_figure.figure_json(chart))
    macros: Any = environment.get_template("blocks.html.j2").module

    def draw(block: Block) -> Markup:
        return getattr(macros, _MACROS[type(block)])(block)

    return environment.get_template("report.html.j2").render(
        page=page,
        draw=draw,
        style=Markup(templating.file("style.css")),
        brush=Markup(templating.file("brush.js")),
        script=Markup(templating.file("page.js")),
        plotly=Markup(_plotly()),
    )


@cache
def _plotly() -> str:
    """Plotly's script, to be embedded in the page."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")
