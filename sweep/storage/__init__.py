"""Optuna storages: the journal of a study's folder, or a URL."""
