"""MrT5 toolkit: train, evaluate and inspect byte-level models that delete the bytes they do not need."""

__version__ = "0.1.0"
