"""Data sets made on this machine, from what package managers bring: `mrt5 data build`.

Each module makes one data set and returns what its manifest says. Nothing made here is part of this project:
the sources have licences of their own, which the manifest names.
"""
