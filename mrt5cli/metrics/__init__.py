"""Metrics: the catalog of them, the numpy counts, and `evaluate.Metric` classes around those.

Importing this package imports neither torch nor `evaluate`.
"""

Z_95 = 1.96
"""Standard deviations around the mean within which 95 % of a normal distribution lie."""
