"""What a local Ray has on this machine: a private folder, and processes that end with it."""
