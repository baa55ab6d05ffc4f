"""Texts that a model writes: how they are decoded, and any number of inputs, one after the other."""
