"""Trains the trials of a sweep, each from its own folder.

`trial.config` and `trial.store` load no torch.
"""
