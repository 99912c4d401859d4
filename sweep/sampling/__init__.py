"""Optuna samplers and pruners, and what they are told about trials."""
