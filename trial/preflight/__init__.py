"""Checks before a trial starts: model, data, device, and an estimate of its memory."""
