"""Decide: read a sweep file, ask and tell Optuna, place jobs with Ray, resume."""
