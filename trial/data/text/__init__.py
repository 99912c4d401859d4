"""Rows as text, and text as token ids: chat templates, prompt tags, special tokens, masks."""
