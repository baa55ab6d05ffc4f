"""Data sets built on this machine from what package managers install: `mrt5 data build`.

Each module builds one data set and returns its manifest. The results are not part of this project: their
sources have separate licenses, which the manifest names.
"""
