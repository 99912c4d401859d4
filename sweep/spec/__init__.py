"""The specification of a sweep: its sections, its search space, the rules of Optuna and HPUs."""
