"""Metrics: the catalog of them, the numpy counts, and `evaluate.Metric` classes around those.

Importing this package imports neither torch nor `evaluate`.
"""

Z_95 = 1.96
"""Standard deviations around the mean within which 95 % of a normal distribution lie."""
Z_80 = 0.8416
"""Below it lie 80 % of a normal distribution: of a design that finds what is there so often."""
