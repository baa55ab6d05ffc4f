"""Metrics: their catalog, the numpy functions that count them, and `evaluate.Metric` wrappers.

Importing this package imports neither torch nor `evaluate`.
"""

Z_95 = 1.96
"""95 % of a normal distribution lies within this many standard deviations of the mean."""
Z_80 = 0.8416
"""80 % of a normal distribution lies below this: the quantile for a power of 80 %."""
