"""An objective and a metric as a user would write them."""

from trial.objectives.batch import per_token_cross_entropy


def weighted(model, batch, *, weight=1.0):
    """Cross-entropy per token, weighted."""
    part = batch["train"]
    return weight * part.per_token(per_token_cross_entropy(model(batch)["train"], part.labels))


def rows_to_forget(model, sets):
    """How many rows there are to forget."""
    return len(sets["forget"].probability) if "forget" in sets else 0


def in_digits(model, sets):
    """A mistake: the digits of a number."""
    return "3.5"
