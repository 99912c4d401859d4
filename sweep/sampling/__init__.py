"""Optuna samplers and pruners, and the trials and constraints that they learn from."""
