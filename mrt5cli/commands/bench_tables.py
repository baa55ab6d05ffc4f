"""What `mrt5 bench` prints: a table a kind, what was checked, and the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrt5cli.commands.tables import print_table
from mrt5cli.metrics.catalog import METRICS
from mrt5cli.text import MISSING, byte_size, counted, number, percent, say

Document = Mapping[str, Any]
VERDICTS = {None: "another setting", "open": "open: median and fastest rounds disagree"}


def present(document: Document) -> None:
    """Print a table for each kind of thing that was timed, and one of the targets."""
    setting = document["setting"]
    say(_setting(setting) + "\n")
    for suite in document["suites"]:
        say(suite["what"])
        if "rows" in suite:
            _precision(suite["rows"])
        else:
            _timings(suite["cases"])
        _parity(suite["parity"])
        for note in suite["notes"]:
            say(note)
        say()
    if document["targets"]:
        _targets(document["targets"])


def _setting(setting: Document) -> str:
    size = "" if setting["parameters"] is None else f", {setting['parameters']:,} parameters"
    threads = counted(setting["threads"], "thread")
    return (
        f"{setting['model']}{size}; batch {setting['batch']} x {setting['length']} -> {setting['target']}, "
        f"{setting['rows']} rows; {setting['device_name']}, {threads}, torch {setting['torch']}; "
        f"{setting['rounds']} rounds"
    )


def _timings(cases: Sequence[Document]) -> None:
    """A line a case and baseline; columns that no case has anything for are left out."""
    compared = any(case["ratios"] for case in cases)
    rates = any(case.get("operations_per_second") for case in cases)
    memory = any(case.get("memory") for case in cases)
    live = any((case.get("memory") or {}).get("live") is not None for case in cases)
    ideal = any(ratio["ideal"] is not None for case in cases for ratio in case["ratios"])
    headers = ["", "median"]
    headers += ["GFLOP/s"] if rates else []
    headers += ["peak\nmemory"] if memory else []
    headers += ["live\nmemory"] if live else []
    headers += ["times\nfaster", "range", "fastest\nrounds"] if compared else []
    headers += ["ideal", "% of\nideal"] if ideal else []
    headers += ["than"] if compared else []
    lines = []
    for case in cases:
        own = [case["name"], case["shown"]]
        if rates:
            rate = case.get("operations_per_second")
            own.append("" if rate is None else f"{rate / 1e9:,.1f}")
        if memory:
            own.append(byte_size((case.get("memory") or {}).get("peak")))
        if live:
            own.append(byte_size((case.get("memory") or {}).get("live")))
        for ratio in case["ratios"] or [None]:
            more = _ratio(ratio, ideal) if compared else []
            lines.append([*own, *more])
            own = [""] * len(own)
    print_table(headers, lines)


def _ratio(ratio: Document | None, ideal: bool) -> list[str]:
    if ratio is None:
        return [""] * (6 if ideal else 4)
    cells = [f"{ratio['median']:.2f}", f"{ratio['least']:.2f}-{ratio['most']:.2f}", f"{ratio['fastest']:.2f}"]
    if ideal:
        known = ratio["ideal"] is not None
        cells += [f"{ratio['ideal']:.2f}", percent(ratio["share_of_ideal"], 0)] if known else ["", ""]
    return [*cells, ratio["baseline"]]


def _precision(rows: Sequence[Document]) -> None:
    measured = [metric for name, metric in METRICS.items() if name in rows[0]]
    headers = [
        "",
        *(metric.column for metric in measured),
        "argmaxes\nflipped %",
        "gates\nflipped %",
        "logits off\nat most",
    ]
    lines = [
        [
            row["precision"],
            *(metric.text(row[metric.name]) for metric in measured),
            percent(row["argmax_flipped"], 3),
            percent(row["gate_flipped"], 3),
            number(row["logits"], 3),
        ]
        for row in rows
    ]
    print_table(headers, lines)


def _parity(parity: Document) -> None:
    for name, found in parity.items():
        what = "" if found["holds"] else f" MORE THAN THE {found['allowed']:.1e} THAT ARE ROUNDING"
        say(f"{name}: at most {found['difference']:.1e} off, on values up to {found['size']:.1f}{what}")


def _targets(targets: Sequence[Document]) -> None:
    say("targets")
    lines = []
    for target in targets:
        verdict = target["verdict"]
        lines.append(
            [
                target["name"],
                _amount(target["measured"], target["quantity"]),
                _amount(target["fastest"], target["quantity"]),
                ("at most " if target["less"] else "") + _amount(target["must"], target["quantity"]),
                _amount(target["stretch"], target["quantity"]),
                VERDICTS.get(verdict, verdict),
            ]
        )
    print_table(["", "measured", "fastest\nrounds", "must", "stretch", ""], lines)


def _amount(value: float | None, quantity: str) -> str:
    if value is None:
        return MISSING
    if quantity == "share_of_ideal":
        return f"{100 * value:.0f} %"
    return f"{value:.2f} s" if quantity == "seconds" else f"{value:.2f}"
