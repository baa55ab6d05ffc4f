"""The license of published weights: the Hub's identifiers, and the license of an earlier card."""

from __future__ import annotations

import difflib
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.metrics.results import Json
from mrt5cli.text import shortened

PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0
grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openmdw-1.1 openrail
openrail++ osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""
IDENTIFIERS = frozenset(LICENSES.split())
"""The identifiers on `PAGE` in August 2026, except "other", which needs a name and a link."""
FIELDS = ("license", "license_name", "license_link")


def stated(name: str, link: str | None = None) -> Json:
    """The metadata of a license.

    Args:
        name: the Hub's identifier; with `link`, the name of a license without one.
        link: place of such a license's text: a URL, or a file of the repository.

    Raises:
        UserError: the Hub does not know the identifier, or a link is given for one that it knows.
    """
    shown = shortened(name)
    if name in IDENTIFIERS:
        if link is not None:
            raise UserError(
                f"--license-link is for licenses without a Hub identifier, and {shown} is one",
                "leave it out",
            )
        return {"license": name}
    if link is None or name == "other":
        near = difflib.get_close_matches(name.lower(), IDENTIFIERS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ", such as apache-2.0"
        raise UserError(
            f"--license {shown} is not a license identifier of the Hub{meant}",
            f"use one of {PAGE}; for any other license, pass its name and --license-link URL",
        )
    return {"license": "other", "license_name": name, "license_link": link}


def license_name(metadata: Json) -> str:
    """The license's name; empty if none is stated."""
    name = metadata.get("license_name") or metadata.get("license", "")
    return ", ".join(map(str, name)) if isinstance(name, list) else str(name)


def of_card(card: str | Path) -> Json:
    """The license fields in the metadata of a card, given as text or as a file.

    Empty if the card states no license, is not a card, or does not exist.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        text = card.read_text(encoding="utf-8-sig") if isinstance(card, Path) else card
        metadata = ModelCard(text, ignore_metadata_errors=True).data
    except (OSError, ValueError, YAMLError):
        return {}
    return {name: value for name in FIELDS if (value := metadata.get(name))}
