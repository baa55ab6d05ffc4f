"""How `mrt5 inspect-deletions` prints marked texts, deletion rates and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mrt5cli.commands.tables import print_table
from mrt5cli.text import number, percent, say, visible

if TYPE_CHECKING:
    from rich.console import Console

    from mrt5cli.analysis.deletions import InspectedRow
    from mrt5cli.analysis.inspection import Inspection
    from mrt5cli.analysis.marked_text import Run


def present(found: Inspection) -> None:
    """Print one model's marked rows, its deletion rate, and tables of deletions or segments."""
    from mrt5cli.analysis.marked_text import legend

    console = _console()
    colour = console.color_system is not None and not console.no_color
    marked = [row.marked for row in found.rows]
    for row, text in zip(found.rows, marked, strict=True):
        if len(found.rows) > 1:
            removed = "removed by pooling" if found.pools else "deleted"
            say(f"{row.label}, {percent(row.rate.value, 1)} % {removed}")
        _print_marked(console, "", text, colour)
        _say_target(row)
    explained = legend(marked, colour=colour)
    say(f"\n{explained}\n" if explained else "")
    say(summary(found))
    _present_pooling(found) if found.pools else _present_deletion(found)


def _present_deletion(found: Inspection) -> None:
    if found.agreement is not None:
        precision, recall = found.agreement
        of_deleted = (
            "it deletes no letters"
            if precision is None
            else f"{percent(precision, 1)} % of the deleted letters are not needed for the target"
        )
        of_unneeded = (
            "every letter is needed"
            if recall is None
            else f"{percent(recall, 1)} % of the letters not needed are deleted"
        )
        say(f"{of_deleted}; {of_unneeded}")
    say()
    print_table(
        ["kind of byte", "count", "deleted", "%"],
        [
            [kind, f"{of.count:,}", f"{of.total:,.0f}", percent(of.value, 1)]
            for kind, of in found.kinds.items()
        ],
    )


def _present_pooling(found: Inspection) -> None:
    from mrt5cli.analysis.inspection import Segments

    segments = Segments.of(found.rows)
    if segments.dropped_positions:
        say(
            "positions dropped at the ends of rows, where they fill no window (the reference's formula, "
            f"per: batch): {segments.dropped_positions:,}"
        )
    say()
    print_table(
        ["positions", "segments", "%"],
        [
            [f"{length:,}", f"{count:,}", percent(count / segments.count, 1)]
            for length, count in segments.lengths.items()
        ],
    )
    say()
    print_table(
        ["kind of byte", "count", "start a segment", "%"],
        [
            [kind, f"{of.count:,}", f"{of.count - of.total:,.0f}", percent(1 - of.total / of.count, 1)]
            for kind, of in found.kinds.items()
        ],
    )


def present_several(found: Sequence[Inspection], labels: Sequence[str], heatmap: bool) -> None:
    """Print each row as marked by each model, one below the other, and tables of their deletions."""
    from mrt5cli.analysis.marked_text import legend

    console = _console()
    colour = console.color_system is not None and not console.no_color
    names = [visible(label, lines=False) for label in labels]
    width = max(map(len, names))
    every = [[row.marked for row in one.rows] for one in found]
    for place, row in enumerate(found[0].rows):
        say(row.label or "text")
        for name, one, texts in zip(names, found, every, strict=True):
            rate = percent(one.rows[place].rate.value, 1)
            _print_marked(console, f"  {name:<{width}}  {rate:>5} %  ", texts[place], colour)
        _say_target(row)
    explained = legend([text for texts in every for text in texts], colour=colour)
    say(f"\n{explained}\n" if explained else "")
    if heatmap:
        rows = []
        for name, one in zip(names, found, strict=True):
            agreed = one.agreement or (None, None)
            rows.append([name, percent(one.rate.value, 1), *(percent(share, 1) for share in agreed)])
        print_table(["", "deleted %", "precision %", "recall %"], rows, only_filled=True)
        return
    for one in found:
        say(summary(one))
    say()
    kinds = [one.kinds for one in found]
    print_table(
        ["kind of byte", "count", *(f"{name}\ndeleted %" for name in names)],
        [
            [kind, f"{of.count:,}", *(percent(table[kind].value, 1) for table in kinds)]
            for kind, of in kinds[0].items()
        ],
    )


def summary(found: Inspection) -> str:
    """One model's effect on all rows, as a sentence."""
    from mrt5cli.analysis.inspection import Segments

    share = percent(found.rate.value, 1)
    if not found.pools:
        limit = "" if found.fixed else f", gate threshold {found.threshold:g}"
        if found.requested is not None:
            limit += f", which requests a deletion rate of {100 * found.requested:.4g} %"
        return (
            f"{found.name} deletes {int(found.rate.total):,} of {found.rate.count:,} positions ({share} %)"
            + limit
        )
    segments = Segments.of(found.rows)
    return (
        f"{found.name} pools {found.rate.count:,} positions into {segments.count:,} segments "
        f"({share} % fewer), {number(segments.mean_length, 2)} positions each on average; segments "
        f"that start inside a character: {segments.inside_characters:,}"
    )


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _print_marked(console: Console, lead: str, text: Sequence[Run], colour: bool) -> None:
    from mrt5cli.analysis.marked_text import coloured, plain

    if lead and any("\n" in run.text for run in text[:-1]):
        lead = lead.rstrip() + "\n"
    if colour:
        console.print(lead, coloured(text), sep="", soft_wrap=True)
    else:
        print(lead + plain(text))


def _say_target(row: InspectedRow) -> None:
    from mrt5cli.data.characters import characters

    if row.target is not None and not row.sentinels:
        say(f"target: {''.join(one.visible for one in characters(row.target.tolist()))}")
