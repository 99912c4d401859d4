"""The contract of a trial: its configuration, checked without torch."""
