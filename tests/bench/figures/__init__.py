"""The figures: what is done, by whom, and what is to be reached."""
