"""The greatest of everything that sizes something, in recipes, options of the commands and files of models.

Each is some thousand times the paper's full scale, and far below what overflows in numpy and torch: it
refuses slips of the keyboard and nonsense. What the machine at hand cannot do is another question, which a
plan answers.
"""

SEED = 2**32 - 1
"""numpy's legacy generator, which transformers seeds as well, takes no greater one."""
STEPS = 10**9
"""Optimizer steps, and what is counted in them; evaluations that patience counts."""
EXAMPLES = 10**11
"""Examples that are read or generated one after another."""
HELD_EXAMPLES = 10**7
"""Examples that are held in memory together."""
BATCH = 2**20
"""Examples a batch."""
BATCH_TOKENS = 2**30
"""Byte tokens of a batch, padding included."""
LENGTH = 2**21
"""Byte tokens of a source or target."""
BEAMS = 2**12
"""Hypotheses kept for a source, each as much work as one answer."""
PENALTY = 100.0
"""Exponents of a length, plus and minus."""
LAYERS = 10_000
WIDTH = 2**22
"""Of hidden states and feed-forward layers."""
HEADS = 2**14
HEAD_WIDTH = 2**16
VOCABULARY = 10**7
WORKERS = 512
"""Processes or jobs beside one another; each holds what it works on."""
THREADS = 1024
CHECKPOINTS = 10**6
ROUNDS = 10**6
LANGUAGES = 10_000
SOURCES = 1000
"""Of a mixture."""
TEXT = 10_000
"""Characters of a description or note."""
LINE = 4096
"""Characters of a path, an id or a name; the longest path of Linux."""
NAME = 200
"""Characters of what becomes part of a file's name."""

COEFFICIENT = 1e6
"""Of weights of losses and gains, plus and minus: what they weigh stays far from float32's end."""
SMALLEST = 1e-30
"""Of what must be above 0: smaller numbers are 0 in float32, or their squares are."""
LARGEST = 1e20
