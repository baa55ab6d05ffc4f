"""Mixtures: which source each example comes from, and texts of several sources."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.data import DataLoader

from mrt5cli.convert.published import published
from mrt5cli.data.mixtures import LONGEST_BLOCK, block_counts, draw_sources, shares
from mrt5cli.errors import UserError
from mrt5cli.recipe import Recipe, SpanCorruptionTask, dump, left_out_of_smoke, load, smoke, words
from mrt5cli.recipe.differences import decides_numbers, differences
from mrt5cli.recipe.strict_yaml import parse
from mrt5cli.subject import _with_data as with_data
from mrt5cli.tasks import Batch, Task, build_task
from mrt5cli.tasks.base import check_held_out

weights_of_sources = st.lists(st.sampled_from([0.1, 0.25, 0.5, 1, 1.5, 2, 3, 7]), min_size=1, max_size=6)


@given(weights_of_sources, st.integers(0, 1000), st.integers(0, 5000), st.integers(1, 300))
def test_sources_are_functions_of_the_example(
    weights: list[float], seed: int, first: int, count: int
) -> None:
    drawn, numbers = draw_sources(weights, (seed, 2), np.arange(first, first + count))
    shuffled = np.random.default_rng(seed).permutation(count)
    again = draw_sources(weights, (seed, 2), first + shuffled)
    assert (again[0] == drawn[shuffled]).all() and (again[1] == numbers[shuffled]).all()
    for source in range(len(weights)):
        assert (np.diff(numbers[drawn == source]) == 1).all(), "its examples are taken one after the other"


@given(weights_of_sources, st.integers(0, 1000))
def test_shares_are_exact_after_every_block(weights: list[float], seed: int) -> None:
    block = sum(block_counts(tuple(weights))) if len(weights) > 1 else 64
    drawn, numbers = draw_sources(weights, (seed,), np.arange(3 * block))
    for number in range(3):
        counts = np.bincount(drawn[number * block : (number + 1) * block], minlength=len(weights))
        assert counts / block == pytest.approx(np.array(weights) / sum(weights), abs=1e-12)
    assert shares(weights) == pytest.approx(list(np.array(weights) / sum(weights)), abs=1e-12)
    for source in range(len(weights)):
        of_source = numbers[drawn == source]
        assert (of_source == np.arange(len(of_source))).all(), "from 0, without gaps"


def test_equal_weights_draw_what_languages_were_always_drawn_by() -> None:
    """Runs made before there were weights resume with the same examples."""
    drawn, numbers = draw_sources([1] * 3, (42, 2), np.arange(20))
    assert drawn.tolist() == [2, 1, 1, 1, 1, 0, 2, 1, 0, 2, 1, 0, 1, 0, 2, 2, 1, 2, 2, 1]
    assert numbers.tolist() == [0, 0, 1, 2, 3, 0, 1, 4, 1, 2, 5, 2, 6, 3, 3, 4, 7, 5, 6, 8]
    for weight in (1, 0.3):
        both = np.stack(draw_sources([weight] * 15, (42, 2), np.arange(2000)))
        assert hashlib.sha256(both.astype("<i8").tobytes()).hexdigest()[:16] == "52198be42b1d6f0a"


def test_draws_are_uniform_and_depend_on_the_seed() -> None:
    firsts = [draw_sources([1] * 15, (seed, 2), np.arange(1))[0][0] for seed in range(3000)]
    assert abs(np.bincount(firsts, minlength=15) - 200).max() < 5 * 200**0.5
    heavier = [draw_sources([3, 1], (seed, 2), np.arange(1))[0][0] for seed in range(3000)]
    assert abs(heavier.count(0) - 2250) < 5 * (3000 * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((2, 1), (128, 64)),
        ((0.2, 0.1), (128, 64)),
        ((0.1, 0.2, 0.7), (64, 128, 448)),
        ((0.37, 0.63), (2368, 4032)),
        ((0.3333, 0.6667), (3 * 3333, 3 * 6667)),
        ((1e6, 1), (LONGEST_BLOCK, 1)),
    ],
)
def test_a_block_has_the_weights_as_they_are_written(
    weights: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    assert block_counts(weights) == counts


def test_one_source_gives_every_example() -> None:
    drawn, numbers = draw_sources([5], (1,), np.array([7, 3]))
    assert (drawn.tolist(), numbers.tolist()) == ([0, 0], [7, 3])


# --- mixtures of texts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts `wiki` and `news`, in English and Swahili, of which every document says what it is."""
    root = tmp_path_factory.mktemp("mixtures")
    for name in ("wiki", "news"):
        for language in ("en", "sw"):
            (root / name / language).mkdir(parents=True)
            for split, count in (("train-0", 60), ("train-1", 60), ("validation", 20), ("test", 20)):
                rows = [{"text": f"{name}-{language}-{split}-{n} " * (4 + n % 9)} for n in range(count)]
                content = "".join(json.dumps(row) + "\n" for row in rows)
                (root / name / language / f"{split}.jsonl").write_text(content)
    return root


def section(sources: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    lengths = {"input_length": 64, "mean_span_length": 3.0}
    return {"kind": "span_corruption", "sources": sources, **lengths, **settings}


def mixture(folder: Path, *streamed: str, **settings: Any) -> Task:
    """Twice as many examples of `wiki`, in two languages, as of `news` in one."""
    wiki = {"kind": "files", "path": str(folder / "wiki"), "weight": 2, "languages": ["en", "sw"]}
    news = {"kind": "files", "path": str(folder / "news")}
    sources = [
        {**one, "streaming": one["path"].endswith(streamed)} if streamed else one for one in (wiki, news)
    ]
    return build_task(SpanCorruptionTask.model_validate(section(sources, **settings)))


def batches(stream: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(iter(stream), count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one[name], other[name]) for one, other in zip(first, second, strict=True) for name in one
    )


def texts_of(some: Iterable[Batch]) -> list[str]:
    """The bytes of each row, visible ones and hidden ones; they name their document several times."""
    return [
        "".join(chr(i - 3) for i in [*source, *target] if 3 <= i < 131)
        for batch in some
        for source, target in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    ]


def parts_of(some: Iterable[Batch]) -> list[str]:
    names = ("wiki-en", "wiki-sw", "news-en")
    return [max(names, key=text.count) for text in texts_of(some)]


@pytest.mark.parametrize("streamed", [(), ("news",), ("wiki", "news")], ids=["memory", "mixed", "streamed"])
def test_a_mixture_has_its_shares(folder: Path, streamed: tuple[str, ...]) -> None:
    task = mixture(folder, *streamed)
    found = parts_of(batches(task.train_stream(batch_size=16, seed=1), 12))
    assert [found.count(name) for name in ("wiki-en", "wiki-sw", "news-en")] == [64, 64, 64]
    assert task.shares() == pytest.approx({"wiki": 2 / 3, "news": 1 / 3})
    assert "66.7 % wiki: text of " in task.describe() and "33.3 % news: " in task.describe()


@pytest.mark.parametrize("streamed", [(), ("news",), ("wiki", "news")], ids=["memory", "mixed", "streamed"])
def test_a_mixture_resumes_exactly(folder: Path, streamed: tuple[str, ...]) -> None:
    task = mixture(folder, *streamed)
    whole = batches(task.train_stream(batch_size=4, seed=1), 60)
    assert same(whole[:5], batches(mixture(folder, *streamed).train_stream(batch_size=4, seed=1), 5))
    for consumed in (1, 37):
        stream = task.train_stream(batch_size=4, seed=1)
        iterator = iter(stream)
        for _ in range(consumed + 2):  # a loader reads ahead
            next(iterator)
        state = json.loads(json.dumps(stream.state_dict(consumed)))
        resumed = mixture(folder, *streamed).train_stream(batch_size=4, seed=1)
        resumed.load_state_dict(state)
        assert same(batches(resumed, 60 - consumed), whole[consumed:])
    if streamed:
        assert len(state["mark"]) == 3 + 5 * (3 if "wiki" in streamed else 1), "a place for each reader"


@pytest.mark.parametrize("streamed", [(), ("news",), ("wiki", "news")], ids=["memory", "mixed", "streamed"])
def test_workers_leave_a_mixture_as_it_is(folder: Path, streamed: tuple[str, ...]) -> None:
    task = mixture(folder, *streamed)
    whole = batches(task.train_stream(batch_size=4, seed=1), 16)
    resumed = task.train_stream(batch_size=4, seed=1)
    resumed.load_state_dict({"start_batch": 7, "mark": None})
    assert same(batches(DataLoader(resumed, batch_size=None, num_workers=2), 9), whole[7:])


@pytest.mark.parametrize("streamed", [(), ("news",), ("wiki", "news")], ids=["memory", "mixed", "streamed"])
def test_ranks_of_a_mixture_share_its_examples(folder: Path, streamed: tuple[str, ...]) -> None:
    task = mixture(folder, *streamed)
    whole = batches(task.train_stream(batch_size=8, seed=1), 6)
    first, second = (
        batches(task.train_stream(batch_size=4, seed=1, rank=rank, world_size=2), 6) for rank in (0, 1)
    )
    for one, other, both in zip(first, second, whole, strict=True):
        assert torch.equal(torch.cat([one["input_ids"], other["input_ids"]]), both["input_ids"])


def test_a_mixture_is_evaluated_source_by_source(folder: Path) -> None:
    task = mixture(folder, "news")
    assert task.subsets("test") == ["wiki/en", "wiki/sw", "news/en"]
    for subset in task.subsets("validation"):
        held_out = list(task.held_out("validation", subset, batch_size=4, limit=8))
        assert set(parts_of(held_out)) == {subset.replace("/", "-")}
    check_held_out(task, "validation")
    assert any(line.startswith("wiki: ") for line in task.splits())


def test_names_of_parts(folder: Path) -> None:
    """Languages where there is one source, sources where there is one language."""
    wiki, news = ({"kind": "files", "path": str(folder / name / "sw")} for name in ("wiki", "news"))

    def subsets(*sources: dict[str, Any]) -> list[str]:
        return build_task(SpanCorruptionTask.model_validate(section(list(sources)))).subsets("test")

    assert subsets(wiki) == ["en"]
    assert subsets({**wiki, "name": "encyclopedia"}, news | {"name": "news"}) == ["encyclopedia", "news"]


def test_a_lone_source_in_a_list_is_that_source(folder: Path) -> None:
    for streaming in (False, True):
        source = {"kind": "files", "path": str(folder / "wiki"), "streaming": streaming}
        languages = ["en", "sw"]
        listed = build_task(SpanCorruptionTask.model_validate(section([source], languages=languages)))
        alone = {**section([], languages=languages), "source": source}
        task = build_task(SpanCorruptionTask.model_validate(alone))
        assert same(
            batches(listed.train_stream(batch_size=4, seed=3), 30),
            batches(task.train_stream(batch_size=4, seed=3), 30),
        )
        assert (listed.describe(), listed.shares()) == (task.describe(), {})


def test_a_language_that_a_source_lacks(folder: Path) -> None:
    with pytest.raises(UserError, match=r"news.*de"):
        mixture(folder, languages=["en", "de"])


# --- mixtures in recipes ------------------------------------------------------------------------------------


def recipe(sources: list[dict[str, Any]], **settings: Any) -> Recipe:
    tree = {
        "name": "mixed",
        "description": "of several sources",
        "task": section(sources, **settings),
        "training": {"max_steps": 10},
    }
    return Recipe.model_validate(tree)


HUB = {"kind": "hub", "weight": 3, "languages": ["sw", "de"], "configurations": {"sw": "swahili", "fr": "f"}}


def test_a_recipe_with_one_source_says_nothing_of_mixtures() -> None:
    """So its fingerprint is what it was before there were mixtures."""
    alone = load("quickstart")
    assert "sources" not in dump(alone) and "sources" not in alone.model_dump_json()
    mixed = recipe([{"kind": "embedded"}])
    assert "source" not in mixed.model_dump()["task"]
    assert Recipe.model_validate_json(mixed.model_dump_json()) == mixed


@pytest.mark.parametrize(
    ("task", "problems"),
    [
        (
            section([]),
            {"task.source": "missing; expected a section with kind embedded, files or hub, or `sour"},
        ),
        (
            {**section([{"kind": "embedded"}]), "source": {"kind": "embedded"}},
            {"task.sources": "cannot be combined with source; `source: null` removes that of a base"},
        ),
        (
            section([{"kind": "embedded", "weight": 0}, {"kind": "hub", "weight": -1}]),
            {
                "task.sources[0].weight": "expected a number from 1e-06 to 1e+06, not 0",
                "task.sources[1].weight": "expected a number from 1e-06 to 1e+06, not -1",
            },
        ),
        (
            section([{"kind": "files", "path": "a/text"}, {"kind": "files", "path": "b/text"}]),
            {"task.sources[1].name": "sources[0] is named 'text', too; give each source a different name"},
        ),
        (
            section([HUB, {**HUB, "revision": "v2"}]),
            {
                "task.sources[1].label": "sources[0] is named 'c4', too; give each source a different label",
                "task.sources[1].revision": "allenai/c4 has a different revision in an earlier source",
            },
        ),
        (
            section([{"kind": "embedded"}, HUB], languages=["en", "sw"]),
            {
                "task.languages": "the embedded text is English and has no sw; set languages: [en] for "
                "that source"
            },
        ),
        (
            section([{"kind": "embedded", "languages": ["en", "en"]}]),
            {"task.sources[0].languages": "listed twice: en"},
        ),
        (
            section(
                [{"kind": "embedded"}, {"kind": "files", "path": "a", "streaming": True}], shuffle="examples"
            ),
            {"task.shuffle": "must be 'documents', because a streamed text is read in order"},
        ),
        (
            section([{"kind": "files", "path": "a", "wieght": 2}]),
            {"task.sources[0].wieght": "unknown key; did yo"},
        ),
        (
            section([{"kind": "generated"}]),
            {"task.sources[0].kind": "unknown kind 'generated'; expected embe"},
        ),
    ],
)
def test_what_is_wrong_with_a_mixture(task: dict[str, Any], problems: dict[str, str]) -> None:
    tree = {"name": "a", "description": "b", "task": task, "training": {"max_steps": 1}}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(tree)
    found = {words.dotted(place): text for place, text in words.problems(caught.value)}
    assert found.keys() == problems.keys()
    assert all(found[key].startswith(text) for key, text in problems.items()), found


def test_a_smoke_run_of_a_mixture_is_a_mixture() -> None:
    mixed = recipe([HUB, {"kind": "files", "path": "mine", "name": "own"}], languages=["fr"])
    small = smoke(mixed)
    embedded = {"kind": "embedded", "name": "c4", "weight": 3.0, "languages": ["en"]}
    assert small.task.sources[0].model_dump() == embedded
    assert small.task.sources[1] == mixed.task.sources[1] and small.task.languages == ["fr"]
    assert smoke(small) == small
    given = {"task": {"sources": [HUB]}}
    assert left_out_of_smoke(mixed, given)[0].startswith(
        "task.sources is ignored: a smoke run does not use the Hub"
    )


def test_a_resumed_run_may_change_what_it_may_change_of_a_lone_source() -> None:
    before, now = (
        recipe([{**HUB, "patience": patience, "weight": weight}])
        for patience, weight in [("1m", 1), ("2m", 2)]
    )
    assert {key: decides_numbers(key, now) for key in differences(before, now)} == {
        "task.sources[0].patience": False,
        "task.sources[0].weight": True,
    }


def test_what_a_mixture_does_not_read_is_said() -> None:
    [remark] = recipe([{"kind": "embedded"}, HUB]).remarks()
    assert remark == (
        "task.sources[1].configurations names fr, which is not in task.sources[1].languages and therefore "
        "not used"
    )


def test_paths_of_a_published_mixture_stay_apart() -> None:
    clean, _, replaced = published(
        recipe([{"kind": "files", "path": "/me/a"}, {"kind": "files", "path": "/me/b"}])
    )
    assert [one.path for one in clean.task.sources] == ["./your-data-0", "./your-data-1"]
    assert replaced == ["task.sources.0.path", "task.sources.1.path"]


def test_other_data_takes_the_place_of_a_mixture(folder: Path) -> None:
    mixed = recipe([HUB, {"kind": "embedded"}]).task
    replaced = with_data(mixed, str(folder / "wiki"))
    assert (replaced.source.path, replaced.sources) == (str(folder / "wiki"), [])
    assert replaced.languages == ["sw", "de", "en"]


def test_the_example_in_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")
    [block] = [part.partition("```")[0] for part in readme.split("```yaml\n")[1:] if "sources:" in part]
    used = SpanCorruptionTask.model_validate(parse(block).tree["task"]).in_use()
    assert [one.name for one in used] == ["c4", "own", "embedded"]
    assert shares([one.weight for one in used]) == pytest.approx([0.6, 0.3, 0.1])
    assert [one.languages for one in used] == [["en", "sw"], ["en"], ["en"]]
