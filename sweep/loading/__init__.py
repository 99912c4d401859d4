"""From a sweep file to its specification, with every mistake and its line."""
