"""What jobs import, imported once: it takes seconds, and processes forked afterwards take none of them."""

import mrt5cli.evaluation.compare
import mrt5cli.training.run
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.fingerprint import DECIDES, code_version
from mrt5cli.models import load

# The code that jobs run is the code of now, whatever happens to the files: remember its version.
VERSIONS = {work: code_version(work) for work in DECIDES}

# Gathering the text that smoke runs read takes longer than training them.
embedded_documents()

__all__ = ["VERSIONS", "load", "mrt5cli"]
