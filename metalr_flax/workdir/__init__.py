"""All that a run has on the disk: checkpoints, metrics, plots, and its lock."""
