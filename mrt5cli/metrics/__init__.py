"""Metrics: the numpy counts in `counts`, and one `evaluate.Metric` a file around them.

Importing this package imports neither torch nor `evaluate`; import the metric you want from its own file.
"""
