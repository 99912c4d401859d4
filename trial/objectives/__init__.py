"""Loss functions and metrics of training objectives, unlearning among them."""
