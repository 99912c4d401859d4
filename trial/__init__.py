"""Train one job from a trial folder. The front (`config`, `folder`, `problems`) is torch-free."""
