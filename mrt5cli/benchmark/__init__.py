"""`mrt5 bench`: the only place speed claims come from. Everything is timed in turn, in one process."""
