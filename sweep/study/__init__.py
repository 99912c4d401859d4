"""The Optuna study: what it proposes and prunes, and what may be done with a study."""
