"""The training loop's parts: one step, the shared clock, checkpoints, the watch for losses that are not finite."""
