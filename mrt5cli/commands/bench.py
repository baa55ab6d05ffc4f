"""`mrt5 bench`: how fast, against what, and how far from what the saved arithmetic allows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mrt5cli.commands.tables import print_table
from mrt5cli.errors import UserError

KINDS = ("forward", "train", "generate", "attention", "data")


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A run, checkpoint directory or Hub id.")
    ] = None,
    size: Annotated[
        str,
        typer.Option(help="Without MODEL: random weights of this size: byt5-small, -base, -large or tiny."),
    ] = "byt5-small",
    what: Annotated[str, typer.Option(help=f"Which of {', '.join(KINDS)}, with commas.")] = "forward",
    rates: Annotated[str, typer.Option(help="Deletion rates, with commas, 0 to below 1.")] = "0.3,0.5,0.7",
    rows: Annotated[
        Literal["even", "wide"],
        typer.Option(help="Rows of a batch keep the same, or very different lengths."),
    ] = "even",
    batch: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 4,
    length: Annotated[int, typer.Option(min=8, help="Source positions of a row.")] = 1024,
    target: Annotated[int, typer.Option(min=1, help="Target positions of a row.")] = 189,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; one more warms up.")] = 7,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward: also under bfloat16 autocast.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
) -> None:
    """Time models against each other, in turn, in one process, and say how far each is from the ideal.

    Ratios are taken within a round, and their median and range are given. The ideal is the ratio of
    multiply-accumulates; results of the fast paths are checked against the plain one in the same run.

    Examples:

      mrt5 bench --size tiny --batch 2 --length 128 --target 16

      mrt5 bench --rows wide --rates 0.5,0.7 --bf16

      mrt5 bench runs/mrt5-seed1 --what forward,generate --json
    """
    from mrt5cli import runtime as machine
    from mrt5cli.benchmark.report import run

    kinds = _names(what)
    shares = _rates(rates)
    with _progress() as done:
        document = run(
            model,
            size=size,
            kinds=kinds,
            rates=shares,
            rows=rows,
            batch=batch,
            length=length,
            target=target,
            rounds=rounds,
            bf16=bf16,
            device=machine.device(device),
            done=done,
        )
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if out is not None:
        from mrt5cli.rundir import write_text

        write_text(out, text + "\n")
    if as_json:
        print(text)
    else:
        present(document)


def present(document: dict[str, Any]) -> None:
    """Print a table for each kind of thing that was timed."""
    setting = document["setting"]
    print(
        f"{setting['model']}, {setting['parameters']:,} parameters; batch {setting['batch']} x "
        f"{setting['length']} -> {setting['target']}, {setting['rows']} rows; {setting['device_name']}, "
        f"{setting['threads']} threads, torch {setting['torch']}; {setting['rounds']} rounds\n"
    )
    for suite in document["suites"]:
        print(suite["what"])
        lines = []
        for case in suite["cases"]:
            first = True
            for ratio in case["ratios"] or [None]:
                lines.append(
                    [
                        case["name"] if first else "",
                        case["shown"] if first else "",
                        *(["", "", ""] if ratio is None else _ratio_cells(ratio)),
                        ("" if ratio is None else ratio["baseline"]),
                    ]
                )
                first = False
        print_table(["", "median", "times\nfaster", "range", "ideal", "than"], lines)
        for name, parity in suite["parity"].items():
            print(
                f"{name}: at most {parity['difference']:.1e} from the plain path, on values up to "
                f"{parity['size']:.1f}"
            )
        for note in suite["notes"]:
            print(note)
        print()


def _ratio_cells(ratio: dict[str, Any]) -> list[str]:
    ideal = "" if ratio["ideal"] is None else f"{ratio['ideal']:.2f}"
    return [f"{ratio['median']:.2f}", f"{ratio['least']:.2f}-{ratio['most']:.2f}", ideal]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise UserError(
            f"--what {text!r}: {unknown[0]!r} is nothing to time" if unknown else "--what names nothing",
            f"choose from {', '.join(KINDS)}",
        )
    return names


def _rates(text: str) -> list[float]:
    rates = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = -1.0
        if not 0 <= rate < 1:
            raise UserError(
                f"--rates {text!r}: {part.strip()!r} is not a share of positions, 0 to below 1",
                "for example --rates 0.3,0.5,0.7",
            )
        rates.append(rate)
    return rates


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar when stderr is a terminal, else a line for each kind."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(kind: str, finished: int, total: int) -> None:
            if kind not in seen:
                seen.add(kind)
                print(f"timing {kind}", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, TaskID] = {}

        def bar(kind: str, finished: int, total: int) -> None:
            if kind not in known:
                known[kind] = bars.add_task(kind, total=total)
            bars.update(known[kind], completed=finished, total=total)

        yield bar
