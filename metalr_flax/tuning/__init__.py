"""The drop-in: an optax transformation that learns hyperparameters."""
