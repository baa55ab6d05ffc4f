"""Shared by all tests: where the golden material is, how a case of it is read, and where chance comes from.

Without MRT5_TEST_SEED every test draws the same numbers each time. With it (`make fuzz` sets it) hypothesis
draws other examples, and so do the tests marked `drawn` and those that ask for the fixture `chance`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis.statistics import collector

# Nothing in the test suite may reach for the Hub, whatever the machine's own settings are.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Output is compared, so it must not depend on the terminal that runs the tests.
os.environ.pop("COLUMNS", None)
# Read when torch is imported: threads that spin while they wait slow a busy machine down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Read when triton is imported, which transformers does: without a GPU our kernels run in its interpreter.
if importlib.util.find_spec("triton") is not None:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")

# Under nohup, and in the background of a script, they are ignored, and by all that tests start too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["hub_server"]

SEED = "MRT5_TEST_SEED"
UNTIL = "MRT5_TEST_UNTIL"
"""When `make fuzz` is over, in seconds since 1970."""

GOLDEN = Path(__file__).parent / "fixtures" / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference material, see its README."""
    return GOLDEN


def golden_cases(*groups: str) -> list[Any]:
    """One pytest parameter for each case of the groups: the path of its JSON file."""
    return [
        pytest.param(path, id=f"{group}-{path.stem}")
        for group in groups
        for path in sorted((GOLDEN / "cases" / group).glob("*.json"))
    ]


def read_case(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case's description and its tensors."""
    from safetensors.torch import load_file

    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def labelled(name: str) -> Callable[[str], str]:
    """For `torch.testing.assert_close(msg=...)`: the numbers that differ, after the name of what they are."""
    return lambda numbers: f"{name}: {numbers}"


# --- chance -------------------------------------------------------------------------------------------------


class _Torch:
    """torch's global generator as hypothesis wants one: in the same state whenever it repeats an example."""

    def seed(self, number: int) -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(number + _seed())

    def getstate(self) -> Any:
        return sys.modules["torch"].get_rng_state() if "torch" in sys.modules else None

    def setstate(self, state: Any) -> None:
        if state is not None:
            sys.modules["torch"].set_rng_state(state)


_TORCH = _Torch()  # hypothesis keeps no reference of its own


def _seed() -> int:
    text = os.environ.get(SEED, "0")
    if not text.isdecimal():
        raise pytest.UsageError(f"{SEED} is {text!r}; expected a whole number of 0 or more")
    return int(text)


@pytest.hookimpl(tryfirst=True)  # before hypothesis's own, which reads the option
def pytest_configure(config: pytest.Config) -> None:
    settings = hypothesis.settings
    # All that hypothesis would set in another way where it finds itself in a CI.
    common = settings(
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    settings.register_profile("fixed", common, derandomize=True)
    settings.register_profile("fuzz", common, derandomize=False)
    hypothesis.register_random(_TORCH)
    if SEED in os.environ:
        config.option.hypothesis_seed = str(_seed())
    settings.load_profile("fuzz" if SEED in os.environ else "fixed")


def pytest_report_header() -> str:
    if SEED in os.environ:
        return f"drawn numbers: {SEED}={_seed()}"
    return f"drawn numbers: the same each time; others with `make fuzz`, or with {SEED}=1, 2, ..."


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what draws and what is slow; with a seed, shuffle the files: each gets a share of the time."""
    for item in items:
        if item.get_closest_marker("ci"):
            item.add_marker("slow")
        if "chance" in getattr(item, "fixturenames", ()):
            item.add_marker("drawn")
    if SEED in os.environ:
        files = list(dict.fromkeys(item.path for item in items))
        random.Random(_seed()).shuffle(files)
        items.sort(key=lambda item: files.index(item.path))


@pytest.hookimpl(tryfirst=True)  # before fixtures, which may draw as well
def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.time() > float(os.environ.get(UNTIL, "inf")):
        pytest.skip("the minutes of `make fuzz` are over")
    number = zlib.crc32(item.nodeid.encode()) + _seed()
    random.seed(number)
    np.random.seed(number % 2**32)
    _TORCH.seed(number)


@pytest.hookimpl(wrapper=True, trylast=True)  # inside hypothesis's own, whose collector it passes on to
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Note how many examples hypothesis drew, for the sum that `make fuzz` prints."""
    outer, drawn = collector.value, 0

    def count(statistics: dict[str, Any]) -> None:
        nonlocal drawn
        drawn += sum(len(part["test-cases"]) for key, part in statistics.items() if key.endswith("-phase"))
        if outer is not None:
            outer(statistics)

    with collector.with_value(count):
        try:
            return (yield)
        finally:
            item.user_properties.append(("examples", drawn))


@pytest.fixture(scope="module")
def fast() -> Generator[None, None, None]:
    """For the tests of the fast paths themselves: they are on, whatever MRT5_FAST says; in processes too."""
    from mrt5cli.models.fast.switch import fast_paths

    with fast_paths(True), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRT5_FAST", "1")
        yield


@pytest.fixture
def own_loop(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Greedy decoding goes as on a GPU, with its graphs imitated; what `decode` was asked so far."""
    import replayed

    from mrt5cli.models import mrt5
    from mrt5cli.models.fast import greedy
    from mrt5cli.models.fast.switch import fast_paths_are_on

    asked: list[Any] = []

    def decode(*arguments: Any) -> Any:
        asked.append(arguments[2])
        return greedy.decode(*arguments)

    monkeypatch.setattr(greedy, "gpu_paths_are_on", lambda _: fast_paths_are_on())
    monkeypatch.setattr(greedy, "recorded", replayed.recorded)
    monkeypatch.setattr(mrt5, "decode", decode)
    return asked


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of one test, the same whenever seed and test are; a failure shows the seed."""
    print(f"chance: {SEED}={_seed()}")
    return random.Random(f"{_seed()} {request.node.nodeid}")


# --- the machine --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread() -> Generator[None, None, None]:
    """As in the processes that a test starts with OMP_NUM_THREADS=1, so that sums come out alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact_float32() -> Generator[None, None, None]:
    """A GPU's TF32 would round matrix products to 10 bits."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def evaluate_modules(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """A folder of the session for the copies that `evaluate` makes of scripts, which it imports from one."""
    import evaluate

    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("evaluate"))
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder)
        yield
        sys.path[:] = [path for path in sys.path if path != folder]


# --- a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser() -> Generator[Any]:
    """Chromium as playwright drives it, without a network; pages are opened by `browser.new_page(...)`."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    # As root it starts without its sandbox only; the others keep it from looking for its maker's hosts.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=quiet)
        yield started
        started.close()
        # A process that was forked meanwhile, such as a data worker of a training that is still in memory,
        # holds the pipe of playwright's driver open, which then would wait for its end for ever.
        gc.collect()
        for child in multiprocessing.active_children():
            child.terminate()
