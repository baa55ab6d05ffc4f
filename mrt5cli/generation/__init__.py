"""Generate outputs: decoding, and any number of inputs in their order."""
