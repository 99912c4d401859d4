"""Explain: from trial folders alone to a table and a report."""
