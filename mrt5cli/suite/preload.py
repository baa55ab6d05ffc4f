"""What jobs import, imported once: it takes seconds, and processes forked afterwards take none of them."""

import mrt5cli.evaluation.compare
import mrt5cli.training.run  # noqa: F401
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.fingerprint import DECIDES, code_version

# The code that jobs run is the code of now, whatever happens to the files: remember its version.
for work in DECIDES:
    code_version(work)

# Gathering the text that smoke runs read takes longer than training them.
embedded_documents()
