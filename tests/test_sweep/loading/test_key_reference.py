"""The key reference in the documentation is what the fields say today."""

from __future__ import annotations

from helpers.paths import ROOT

from sweep.loading import key_reference


def test_the_reference_is_current():
    written = ROOT / "docs" / "keys.md"
    rule = "run: python -m sweep.loading.key_reference docs/keys.md"
    assert written.read_text(encoding="utf-8") == key_reference.render(), rule


def test_every_key_says_what_it_means():
    sections = [part for part in key_reference.render().split("## ") if "| key | default |" in part]
    rows = [line for part in sections for line in part.splitlines() if line.startswith("| `")]
    silent = [line for line in rows if not line.rstrip(" |").count("|") > 2]
    assert silent == []
