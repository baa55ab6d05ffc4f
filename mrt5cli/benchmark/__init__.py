"""`mrt5 bench`, the only source of speed claims. Cases are timed in turn, in one process."""
