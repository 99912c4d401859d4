"""One trial trained by the Trainer of its device."""
