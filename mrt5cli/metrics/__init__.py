"""Metrics: the catalog of them, the numpy counts, and `evaluate.Metric` classes around those.

Importing this package imports neither torch nor `evaluate`.
"""
