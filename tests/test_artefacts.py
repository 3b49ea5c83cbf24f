"""Artefacts of the default recipe on real sources: small, and the same predictions after a reload."""

import numpy as np
import pytest

import reprogram as rp
from tasks import load_task

CASES = [
    ("auto", {}, "freesolv", 420),
    ("auto", {}, "b3db", 420),
    ("minimol", {}, "freesolv", 60),
    ("chemnet", {}, "freesolv", 60),
    ("annalog", {}, "freesolv", 60),
    ("minilm", {}, "freesolv", 60),
    ("minilm", {"program": "sparse", "mapping": "gp"}, "freesolv", 60),
    ("rxnfp", {}, "freesolv", 60),
    ("rxnmapper", {}, "freesolv", 60),
]


@pytest.mark.slow
@pytest.mark.parametrize("source, parts, data, size", CASES, ids=[f"{c[0]}-{c[2]}-{len(c[1])}" for c in CASES])
def test_artefacts_are_small_and_come_back_identical(source, parts, data, size, tmp_path):
    present = {info.name for info in rp.catalogue() if info.present}
    if source != "auto" and source not in present:
        pytest.skip(f"{source} is not installed")
    task = load_task(data, split="random").subset(size, 0)
    model, _ = rp.adapt(source, *task.part("train"), kind=task.kind, epochs=1, progress=False, **parts)
    model.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5e6
    test = task.part("test")[0][:40]
    again = rp.Reprogrammed.from_pretrained(tmp_path)
    assert np.array_equal(rp.predict(model, test), rp.predict(again, test))
