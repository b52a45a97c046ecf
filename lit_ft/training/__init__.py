"""The trainer, its checkpoints, and resuming."""
