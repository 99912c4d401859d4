"""An objective and a metric as a user would write them."""

from trial.objectives.batch import per_token_cross_entropy


def weighted(model, batch, *, weight=1.0):
    """Nats per token, weighted."""
    side = batch["train"]
    return weight * side.per_token(per_token_cross_entropy(model(batch)["train"], side.labels))


def rows_to_forget(model, sets):
    """How many rows there are to forget."""
    return len(sets["forget"].probability) if "forget" in sets else 0
