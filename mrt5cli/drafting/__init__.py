"""`mrt5 recipe new`: inspect a table of pairs, and write a recipe for it that is ready to run."""
