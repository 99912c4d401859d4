"""From folders to the table of trials, and how values are written."""
