"""`mrt5 env`: what a report of a bug needs, whatever is broken, and nothing that is secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mrt5cli
from mrt5cli.cli import app
from mrt5cli.commands import env

SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "WANDB_API_KEY": "0123456789",
    "MRT5_NOTE": "see hf_qrstuvwxyzab there",
    "HTTPS_PROXY": "http://me:pass-word@proxy.example:3128",
    "hf_endpoint_proxy": "http://me@proxy.example",
    "http_proxy": "me:pass-word@proxy.example:3128",
    "HF_ENDPOINT": "https://me@example.org:pass-word@mirror.example/",
    "WANDB_BASE_URL": "https://wandb.example/?team=a&token=pass-word",
    "SLURM_JWT": "pass-word",
    "HF_HUB_CACHE": "{home}/private/hub",
}


def told(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Without what torch says, which takes a while."""
    monkeypatch.setattr(env, "_of_libraries", dict)
    result = CliRunner().invoke(app, ["env", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_it_says_what_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    document = json.loads(told(monkeypatch, "--json"))
    assert list(document) == ["mrt5cli", "system", "packages", "extras", "environment", "caches"]
    assert document["mrt5cli"]["version"] == mrt5cli.__version__
    assert f"CPython {sys.version.split()[0]}" in document["mrt5cli"]["python"]
    assert document["system"]["cores"].startswith(f"{os.cpu_count()}, ")
    assert {"torch", "transformers", "huggingface_hub"} <= document["packages"].keys()
    text = told(monkeypatch)
    for section, facts in document.items():
        assert f"{section}\n" in text
        assert all(f"  {name}" in text for name in facts)


def test_extras_that_are_not_here_are_told_with_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    version = env._version
    monkeypatch.setattr(env, "_version", lambda name: None if name == "onnxruntime" else version(name))
    found = json.loads(told(monkeypatch, "--json"))["extras"]
    assert found["onnx"].startswith("not installed: pip install 'onnx>=") and "onnxruntime" in found["onnx"]
    assert found["plots"].startswith("matplotlib ")


def test_it_works_where_nothing_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert json.loads(told(monkeypatch, "--json"))["packages"] == {
        "mrt5cli": "not installed; running from its source folder"
    }


def test_nothing_secret_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    home = os.path.expanduser("~")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value.format(home=home))
    found = json.loads(told(monkeypatch, "--json"))["environment"]
    assert found["HF_TOKEN"] == found["WANDB_API_KEY"] == "(hidden)"
    assert found["MRT5_NOTE"] == "see (hidden) there"
    assert found["HTTPS_PROXY"] == "http://(hidden)@proxy.example:3128"
    assert found["http_proxy"] == "(hidden)@proxy.example:3128"
    assert found["HF_ENDPOINT"] == "https://(hidden)@mirror.example/"
    assert found["WANDB_BASE_URL"] == "https://wandb.example/?team=a&token=(hidden)"
    assert found["HF_HUB_CACHE"] == "~/private/hub"
    text = told(monkeypatch)
    for secret in ("abcdefgh", "01234567", "qrstuvw", "pass-word", f"{home}/"):
        assert secret not in text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            "raise OSError('libtorch_cpu.so: cannot open shared object file')",
            "OSError: libtorch_cpu.so: cannot",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import sys; sys.exit(3)", "exit code 3 without a message"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_where_torch_is_broken_it_says_so(
    content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(content)
    root = Path(mrt5cli.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    if "sleep" in content:
        monkeypatch.setattr(env, "PATIENCE", 1)
    found = env._of_libraries()
    assert list(found) == ["torch"] and str(found["torch"]["broken"]).startswith(why)


def test_where_only_what_is_above_torch_is_broken_torch_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError('no such thing')")
    root = Path(mrt5cli.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    found = env._of_libraries()
    assert found["torch"]["version"] and found["fast paths"] == {"broken": "ImportError: no such thing"}


@pytest.mark.slow  # it imports torch and transformers
def test_the_whole_command_is_quick() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mrt5cli", "env", "--json"], capture_output=True, text=True, timeout=120
    )
    document = json.loads(done.stdout)
    assert document["torch"]["version"] and document["fast paths"]["switched on"] is True
    assert document["fast paths"]["attention"].startswith("packed") or document["torch"]["cuda"]
