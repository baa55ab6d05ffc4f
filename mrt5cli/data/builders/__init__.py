"""Data sets made on this machine, from what package managers bring: `mrt5 data build`.

Each module makes one data set and returns what its manifest says. Nothing made here is part of this project:
the sources have licences of their own, which the manifest names.
"""

DECIDES_NUMBERS = False  # they make data sets by their own command; what they wrote stays as it is
