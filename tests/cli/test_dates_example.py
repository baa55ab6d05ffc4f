"""The example of written dates: its commands, as they stand in READMEs, with few steps. Minutes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mrt5cli.json_files import read_object

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "mrt5cli/tasks/README.md"]
WITH_IT = [path for path in READMES if "build dates" in path.read_text()]
IN_FEW_STEPS = """
mrt5() {
    case $1 in
        pretrain | finetune) few="--set training.max_steps=6 --set training.warmup_steps=2 --device cpu" ;;
        *) few= ;;
    esac
    "$PYTHON" -m mrt5cli "$@" $few
}
set -e -o pipefail
"""


@pytest.mark.parametrize("readme", WITH_IT, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_commands_run(readme: Path, tmp_path: Path) -> None:
    block_of_it = re.compile(r"(?:^    mrt5 data build dates .*\n)(?:^    \S.*\n)+", re.MULTILINE)
    [block] = block_of_it.findall(readme.read_text())
    assert "mrt5 generate" in block and "mrt5 inspect-deletions" in block
    done = subprocess.run(
        ["bash", "-c", f"{IN_FEW_STEPS}{block}mrt5 pretrain my_dates.yaml --smoke"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    for name in ("byt5", "mrt5", "random"):
        saved = read_object(tmp_path / f"runs/dates-{name}-seed42/eval/text2text.json")
        [model] = saved["models"]
        [row] = model["rows"]
        assert row["examples"] == 2_000 and row["exact_match"] is not None and row["cer"] is not None
    assert "example 1, " in done.stdout and "kind of byte" in done.stdout
    assert "runs/smoke/dates-smoke-seed42" in done.stderr
