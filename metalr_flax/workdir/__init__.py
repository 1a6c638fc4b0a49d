"""The files of a run: checkpoints, metrics, plots, and its lock."""
