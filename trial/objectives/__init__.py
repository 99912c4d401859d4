"""What a trial minimises, and the metrics that unlearning is judged by."""
