"""The report in a real browser, opened from disk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.results import rank_study

from results import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)"
)

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

# What a reader does, then what the page looks like after it, for the test to read.
ACTIONS = """
<script>
const told = {};
const column = (table, index) => [...table.tBodies[0].rows]
  .filter((row) => !row.hidden).map((row) => row.cells[index].textContent);
const press = (table, index) => table.tHead.rows[0].cells[index].querySelector("button").click();
const trials = document.getElementById("table-trials");
const names = [...trials.tHead.rows[0].cells].map((cell) => cell.textContent);
const place = names.indexOf("learning rate");
press(trials, place);
told.up = column(trials, place);
told.sort = trials.tHead.rows[0].cells[place].getAttribute("aria-sort");
press(trials, place);
told.down = column(trials, place);
const input = document.querySelector("input[data-filter=trials]");
input.value = "pruned 64";
input.dispatchEvent(new Event("input"));
told.filtered = column(trials, names.indexOf("trial"));
told.status = input.closest(".filter").querySelector("[role=status]").textContent;
told.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.getElementById("theme").click();
told.theme = document.documentElement.dataset.theme;
dispatchEvent(new Event("beforeprint"));
setTimeout(() => {
  told.paper = [...document.querySelectorAll(".plot svg.main-svg")]
    .map((drawing) => Number(drawing.getAttribute("width")));
  told.drawn = [...document.querySelectorAll(".plot")]
    .filter((plot) => plot.querySelector("svg.main-svg")).map((plot) => plot.id);
  told.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  told.plots = document.querySelectorAll(".plot").length;
  const out = document.createElement("pre");
  out.id = "told";
  out.textContent = JSON.stringify(told);
  document.body.append(out);
}, 3000);
</script>
"""


def chromium(scratch: Path, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    profile = scratch / "profile"
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(rank_study(tmp_path_factory.mktemp("runs") / "ranks"))


@pytest.fixture(scope="module", params=[1280, 500], ids=["wide", "phone"])
def opened(request, page, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("browser")
    acted = scratch / "report.html"
    html = page.read_text(encoding="utf-8")
    acted.write_text(html.replace("</body>", ACTIONS + "</body>"), encoding="utf-8")
    done = chromium(
        scratch, acted, f"--window-size={request.param},2000", "--virtual-time-budget=30000",
        "--dump-dom",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def told(opened) -> dict:
    text = re.search(r'<pre id="told">(.*?)</pre>', opened.stdout, re.DOTALL)
    assert text, opened.stderr[-2000:]
    return json.loads(text.group(1).replace("&lt;", "<").replace("&amp;", "&"))


def test_the_console_is_silent(opened):
    lines = [line for line in opened.stderr.splitlines() if "CONSOLE" in line]
    assert lines == []


def test_no_request_leaves_the_file(opened):
    """A blocked or failed request would also break the silence of the console."""
    assert told(opened)["requests"] == []


def test_every_section_and_plot_is_drawn(opened):
    shown = told(opened)
    assert shown["plots"] > 10
    assert len(shown["drawn"]) == shown["plots"]
    for section in ("answer", "leaderboard", "lora", "search", "cost", "pruned", "failures",
                    "trials", "provenance", "method"):  # fmt: skip
        assert f'<section id="{section}"' in opened.stdout


def test_tables_sort_by_number_with_unknowns_last(opened):
    shown = told(opened)
    known = [float(text) for text in shown["up"] if text not in ("–",)]  # noqa: RUF001
    assert known == sorted(known)
    assert len(known) == 19
    assert [float(text) for text in shown["down"]] == sorted(known, reverse=True)
    assert shown["sort"] == "ascending"


def test_tables_filter_by_every_word(opened):
    shown = told(opened)
    assert shown["filtered"] == ["10"]
    assert shown["status"] == "1 of 19 rows"


def test_the_page_never_scrolls_sideways_and_changes_its_theme(opened):
    shown = told(opened)
    assert shown["wide"] == 0
    assert shown["theme"] == "dark"


def test_plots_on_paper_are_as_wide_as_a_sheet_takes(opened):
    """A screen's width would be cut off in print."""
    assert set(told(opened)["paper"]) == {640}


def test_it_prints(page, tmp_path):
    out = tmp_path / "report.pdf"
    done = chromium(tmp_path, page, "--virtual-time-budget=20000", f"--print-to-pdf={out}")
    assert done.returncode == 0
    assert out.read_bytes()[:4] == b"%PDF"
