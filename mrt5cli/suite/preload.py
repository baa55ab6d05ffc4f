"""Imports once what all jobs need, which takes seconds; forked processes then need none."""

import mrt5cli.evaluation.compare
import mrt5cli.training.run  # noqa: F401
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.fingerprint import DECIDES, code_version

# Jobs run the code loaded now, even if the files change later, so compute its version now.
for work in DECIDES:
    code_version(work)

# Collecting the text that smoke runs read takes longer than training them.
embedded_documents()
