"""Checkpoints in and out: every layout that `mrt5 convert` writes."""
