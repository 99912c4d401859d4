"""From a sweep file to its specification, with every mistake by its line."""
