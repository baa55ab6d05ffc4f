"""What a shell completes, asked as shells ask: bash with words cut at colons, zsh and fish with a line."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mrt5cli import cli, runtime
from mrt5cli.commands.completion import whole_words

Ask = Callable[..., list[str]]
OTHERS = {"zsh": {}, "fish": {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs and recipes of all names, some of them broken."""
    for name in ("plain", "my run", "a:b", "we$ird", "smoke/small", "it's", "two\nlines"):
        run = tmp_path / "runs" / name
        (run / "checkpoints/step-00000010").mkdir(parents=True)
        (run / "checkpoints/step-00000010/config.json").write_text("{")
        (run / "recipe.yaml").write_text("[broken")
        (run / "meta.json").write_text("")
    (tmp_path / "runs/not one").mkdir()
    (tmp_path / "mine").mkdir()
    for file in ("mine.yaml", "mine/two words.yaml", "mine/a=b.yaml", "mine/notes.txt"):
        (tmp_path / file).write_text("\x00")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mrt5"])
    return tmp_path


@pytest.fixture
def bash(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ask:
    """Ask for the end of the last of some words, typed as they are given."""

    def ask(*words: str, breaks: str = ":=@") -> list[str]:
        cut = [
            part
            for word in ("mrt5", *words)
            for part in (
                [word] if word[:1] in ("", "'", '"') else re.findall(f"[{breaks}]+|[^{breaks}]+", word)
            )
        ]
        monkeypatch.setenv("_MRT5_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(cut))
        monkeypatch.setenv("COMP_CWORD", str(len(cut) - 1))
        with pytest.raises(SystemExit) as end:
            cli._run()
        out, told = capfd.readouterr()
        assert (end.value.code, told) == (0, "")
        return [line for line in out.splitlines() if line]

    return ask


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pretr"], ["pretrain"]),
        (["pretrain", "quick"], ["quickstart", "quickstart_byt5", "quickstart_random"]),
        (["pretrain", "multilingual_v3/mrt5_5"], ["multilingual_v3/mrt5_50"]),
        (["pretrain", "mine"], [r"mine.yaml", "mine/a=b.yaml", r"mine/two\ words.yaml"]),
        (["pretrain", "mine/a"], ["mine/a=b.yaml"]),
        (["recipe", "check", "quickstart", "mine/t"], [r"mine/two\ words.yaml"]),
        (["evaluate", "runs/pl"], ["runs/plain"]),
        (["evaluate", "runs/plain", "runs/sm"], ["runs/smoke/small"]),
        (["evaluate", "runs/my"], [r"runs/my\ run"]),
        (["evaluate", r"runs/my\ r"], [r"runs/my\ run"]),
        (["evaluate", "'runs/my r"], ["runs/my run"]),
        (["evaluate", '"runs/we'], ["runs/we$ird"]),
        (["evaluate", "runs/we"], [r"runs/we\$ird"]),
        (["evaluate", "runs/it"], [r"runs/it\'s"]),
        (["evaluate", "runs/a"], ["runs/a:b"]),
        (["evaluate", "runs/a:"], ["b"]),
        (["inspect-deletions", "runs/plain/"], ["runs/plain/checkpoints/step-00000010"]),
        (["evaluate", "runs/plain@"], ["@step-10", "@last"]),
        (["evaluate", "runs/plain@s"], ["@step-10"]),
        (["finetune", "x", "--from=runs/plain@l"], ["@last"]),
        (["evaluate", "runs/none@"], []),
        (["evaluate", "pl"], []),
        (["runs", "show", "pl"], ["plain"]),
        (["runs", "show", "my"], [r"my\ run"]),
        (["runs", "compare", "runs/pl"], ["runs/plain"]),
        (["runs", "show", "plain@"], []),
        (["evaluate", "--compare", "runs/pl"], ["runs/plain"]),
        (["finetune", "x", "--from=runs/pl"], ["runs/plain"]),
        (["finetune", "x", "--from=runs/a:"], ["b"]),
        (["evaluate", "--task", "merge"], ["merge_ABC"]),
        (["evaluate", "--task", "quickstart_r"], ["quickstart_random"]),
        (["evaluate", "x", "--device", "c"], ["cpu", "cuda", "cuda:0", "cuda:1"]),
        (["evaluate", "x", "--device", "cuda:"], ["0", "1"]),
        (["evaluate", "x", "--device=cuda:"], ["0", "1"]),
        (["generate", "x", "--device", "cuda:0,cuda:"], ["0", "1"]),
        (["pretrain", "--continue-for", "9", "runs/pl"], ["runs/plain"]),
        (["reproduce", "min"], ["miniature"]),
        (["recipe", "schema", "model.shortener.lay"], ["model.shortener.layer"]),
        (["pretrain", "x", "--set", "training.max_s"], ["training.max_steps=", "training.max_steps=..."]),
        (["pretrain", "x", "training.max_s"], ["training.max_steps=", "training.max_steps=..."]),
        (["pretrain", "x", "--set=training.prec"], ["training.precision=", "training.precision=fp32"]),
        (["pretrain", "x", "training.precision="], ["fp32", "bf16"]),
        (["recipe", "show", "x", "--set", "training.precision=b"], ["bf16"]),
        (["pretrain", "x", "--set", "evaluation.hard_delete="], ["true", "false"]),
        (["convert", "a", "b", "--to", "ref"], ["reference", "reference-v1"]),
        (["bench", "--dev"], ["--device"]),
        (["evaluate", "nothing/li"], []),
        (["pretrain", "no/such/key"], []),
        (["generate", "runs/plain", "--out", "mi"], []),
        (["evaluate", "~nobody-here/x", "--device", "cp"], ["cpu"]),
        (["-V", "pretr"], ["pretrain"]),
    ],
    ids=" ".join,
)
def test_bash_is_told(
    bash: Ask, words: list[str], found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / f"nvidia/gpus/{number}").mkdir(parents=True)
    monkeypatch.setattr(runtime, "DRIVER", tmp_path / "nvidia")
    told = bash(*words)
    assert told[: len(found)] == found if found else told == []
    assert len(told) == len(found) or "training.precision=" in told


def test_where_bash_does_not_cut_at_colons_the_whole_word_is_told(bash: Ask) -> None:
    assert bash("evaluate", "runs/a:", breaks="=") == ["runs/a:b"]


def test_with_nothing_typed_all_is_told(bash: Ask) -> None:
    assert {"quickstart", "mine.yaml", r"mine/two\ words.yaml"} <= set(bash("pretrain", ""))
    runs = bash("evaluate", "")
    assert {"runs/plain", r"runs/my\ run"} <= set(runs) and not any(
        "two" in run or "lines" in run for run in runs
    )
    assert {"training.max_steps=", "seed=", "model.shortener.layer="} <= set(
        bash("pretrain", "x", "--set", "")
    )


def test_code_is_not_run_for_a_completion(bash: Ask, here: Path) -> None:
    (here / "own.py").write_text("open('was here', 'w')\n")
    assert bash("pretrain", "--code", "own.py", "quickstart_b") == ["quickstart_byt5"]
    assert not (here / "was here").exists()


@pytest.mark.parametrize("shell", OTHERS)
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mrt5 pretrain quickstart_b", "quickstart_byt5"),
        ("mrt5 evaluate runs/my", "runs/my run"),
        (r"mrt5 evaluate runs/my\ r", "runs/my run"),
        ("mrt5 evaluate 'runs/my r", "runs/my run"),
        ("mrt5 evaluate runs/a:", "runs/a:b"),
        ("mrt5 pretrain x --set training.precision=b", "training.precision=bf16"),
        ("mrt5 pretrain x training.precision=b", "training.precision=bf16"),
        ("mrt5 evaluate x --device cp", "cpu"),
        ("mrt5 evaluate nothing/li", ""),
    ],
)
def test_zsh_and_fish_are_told(
    shell: str,
    line: str,
    found: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wanted = {"_MRT5_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, **OTHERS[shell]}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        cli._run()
    out, told = capfd.readouterr()
    assert (end.value.code, told) == (0, "")
    if shell == "fish":
        assert out.strip() == found
    elif not found:
        assert out.strip() == "_files"
    else:
        escaped = found.replace(":", r"\\:")
        assert out.strip() == f"""_arguments '*: :(("{escaped}"))'"""


def test_words_are_put_together_where_bash_cut_them() -> None:
    assert whole_words(["mrt5", "a", "=", "b", ":", "c"]) == (["mrt5", "a=b:c"], "a=b:")
    assert whole_words(["mrt5", "a", "=", ""]) == (["mrt5", "a=", ""], "")
    assert whole_words(["mrt5", "--x", "=", "b", ":"]) == (["mrt5", "--x=b:"], "b:")
    assert whole_words(["mrt5", "x", "--set", "k", "="]) == (["mrt5", "x", "--set", "k="], "k=")
    # Other than the rest, an @ is in what bash replaces.
    assert whole_words(["mrt5", "a", ":", "b", "@"]) == (["mrt5", "a:b@"], "a:b")
    assert whole_words(["mrt5", "a", "@", "s"]) == (["mrt5", "a@s"], "a")
    assert whole_words(["mrt5", "a", ":", "b", "c"]) == (["mrt5", "a:b", "c"], "")


# --- for real -----------------------------------------------------------------------------------------------


@pytest.fixture
def command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mrt5` on the path, and a home directory of its own."""
    script = here / "bin/mrt5"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mrt5cli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    monkeypatch.setenv("HOME", str(here))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_what_is_installed_works_in_bash(here: Path, command: None) -> None:
    installed = "mrt5 --install-completion >&2 && source ~/.bashrc && complete -p mrt5"
    typed = {"runs/my": r"runs/my\ run", "runs/a :": "b"}
    asked = (
        f"COMP_WORDS=(mrt5 evaluate {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "_mrt5_completion mrt5; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
        for words in typed
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", "; ".join([installed, *asked])], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["complete -o default -F _mrt5_completion mrt5", *typed.values()]


def test_an_answer_loads_neither_torch_nor_numpy(here: Path) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & {*sys.modules}))\n"
        "from mrt5cli.cli import main\nmain()\n"
    )
    for line in ("pretrain quick", "pretrain x --set tr", "evaluate --task co", "evaluate runs/"):
        words = ["mrt5", *line.split()]
        asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **asked, "_MRT5_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.splitlines()[-1] == "HEAVY set()" and len(done.stdout.splitlines()) > 1, done
