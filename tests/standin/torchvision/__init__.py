"""STAND-IN: adapt_transformers_to_gaudi imports image models, which import this by its name only."""
