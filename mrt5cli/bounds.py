"""Upper bounds of all sizes in recipes, command-line options and model files.

Each is about a thousand times the paper's full scale and far below what overflows in numpy and torch, so that
it only refuses typing errors and nonsense. Whether this machine can do the work is decided by a plan.
"""

SEED = 2**32 - 1
"""The limit of numpy's legacy generator, which transformers seeds as well."""
STEPS = 10**9
"""Optimizer steps and intervals; also evaluations that `patience` counts."""
EXAMPLES = 10**11
"""Examples read or generated one after another."""
HELD_EXAMPLES = 10**7
"""Examples held in memory together."""
BATCH = 2**20
"""Examples per batch."""
BATCH_TOKENS = 2**30
"""Byte tokens of a batch, padding included."""
LENGTH = 2**21
"""Byte tokens of a source or target."""
BEAMS = 2**12
"""Beams per source, each as much work as one answer."""
PENALTY = 100.0
"""Absolute value of a length penalty's exponent."""
LAYERS = 10_000
WIDTH = 2**22
"""Width of hidden states and feed-forward layers."""
HEADS = 2**14
HEAD_WIDTH = 2**16
VOCABULARY = 10**7
WORKERS = 512
"""Concurrent processes or jobs; each holds its own data."""
THREADS = 1024
CHECKPOINTS = 10**6
ROUNDS = 10**6
LANGUAGES = 10_000
SOURCES = 1000
"""Sources of a mixture."""
TEXT = 10_000
"""Characters of a description or note."""
LINE = 4096
"""Characters of a path, an id or a name; the longest path on Linux."""
NAME = 200
"""Characters of a text that becomes part of a file name."""

COEFFICIENT = 1e6
"""Absolute value of loss weights and gains; keeps weighted losses far from float32's limits."""
SMALLEST = 1e-30
"""Lower bound of positive numbers: smaller ones, or their squares, are 0 in float32."""
LARGEST = 1e20
