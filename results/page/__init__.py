"""The report as data: charts, tables, sentences."""
