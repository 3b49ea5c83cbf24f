"""Attacks over two processes come to what one process comes to, sample by sample."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adversarial import PGD, Ball, Restarts, evaluate
from adversarial.contract import example
from adversarial.processes import gathered, share_of

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
from dataclasses import asdict
from functools import partial

import torch
from reprogram.train import default_accelerator
from adversarial import APGD, FAB, PGD, SimBA, Ball, Targeted, Worst, evaluate, lift, BrightnessContrast
from adversarial.contract import example

out, accelerator = sys.argv[1], default_accelerator()
model, x, y = example(count=33)  # the last process has a row less
model.eval()
eps = torch.linspace(0.01, 0.12, len(x), dtype=torch.float64)
ball = Ball("linf", eps, mask=torch.ones_like(x))
attacks = {
    "pgd": PGD(ball, restarts=2), "lifted": PGD(lift(BrightnessContrast(0.4, 0.6)), steps=5),
    "simba": SimBA(Ball("l2", 0.3)), "worst": Worst((APGD(ball, steps=20), FAB(ball, steps=5))),
}
found = {}
for name, attack in attacks.items():
    found[name] = attack.run(
        model, x, y, generator=torch.Generator().manual_seed(5), batch_size=7, accelerator=accelerator
    )
some = torch.tensor([3, 0, 30])
found["some"] = attacks["pgd"].run(model, x, Targeted((y + 1) % 3), rows=some, accelerator=accelerator)
found["one"] = attacks["pgd"].run(model, x, y, rows=some[:1], accelerator=accelerator)
found["kept"] = attacks["worst"].run(model, x, y, accelerator=accelerator, checkpoint=out + "/kept")
curve = evaluate(
    model, x, y, {"pgd": PGD, "apgd": partial(APGD, steps=10)}, threat=Ball("linf", 1.0, mask=torch.ones_like(x)),
    eps=(0.0, 0.05, 0.1), out=out + "/curve.json", progress=False, accelerator=accelerator,
)
rank = accelerator.process_index
torch.save({name: asdict(one) for name, one in found.items()}, f"{out}/found-{rank}.pt")
curve.to_json(f"{out}/curve-{rank}.json")
assert accelerator.num_processes == int(sys.argv[2]), accelerator.num_processes
"""


def launched(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    # `accelerate launch --cpu --num_processes 2` starts two processes only under MPI; torch's launcher always does
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(tmp_path, monkeypatch):
    script = tmp_path / "attack.py"
    script.write_text(SCRIPT)
    results, curves = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        if processes == 1:
            monkeypatch.setattr(sys, "argv", [str(script), str(out), "1"])
            runpy.run_path(str(script))
        else:
            launched(processes, str(script), str(out), str(processes))
        results += [torch.load(out / f"found-{rank}.pt", weights_only=True) for rank in range(processes)]
        curves += [json.loads((out / f"curve-{rank}.json").read_text()) for rank in range(processes)]
    assert sorted(path.name for path in (tmp_path / "2" / "kept").iterdir()) == ["0-of-2", "1-of-2"]
    first = results[0]
    assert len(first["pgd"]["success"]) == 33 and len(first["some"]["success"]) == 3
    assert 0 < first["pgd"]["success"].sum() < 33
    for other in results[1:]:
        for name, parts in first.items():
            for field, values in parts.items():
                assert torch.allclose(values, other[name][field], rtol=0, atol=1e-9), (name, field)
    for curve in curves[1:]:
        assert [p["broken"] for p in curve["points"]] == [p["broken"] for p in curves[0]["points"]]
        passes = [[p["forwards"] for p in one["points"]] for one in (curve, curves[0])]
        assert passes[0] == pytest.approx(passes[1], rel=0.05)  # a batch is filled up with rows that are done


@pytest.mark.slow
def test_the_main_process_alone_prints_and_writes(tmp_path):
    from reprogram import adapt
    from tasks.attacking import attack_file

    smiles = ["C" * n + "O" for n in range(1, 9)] + ["c1ccccc1" + "C" * n for n in range(1, 9)]
    y = [0] * 8 + [1] * 8
    rows = "".join(f"{s},{v}\n" for s, v in zip(smiles, ["no", "yes"] * 8, strict=True))
    (tmp_path / "data.csv").write_text("smiles,ring\n" + rows)
    model, _ = adapt(
        "chemnet", smiles, y, kind="classification", program="none", mapping="ridge", epochs=0, progress=False
    )
    about = {"modality": "molecules", "target": ["ring"], "input": "smiles", "kind": "classification", "name": "ring"}
    model.save_pretrained(tmp_path / "model", task={**about, "classes": ["no", "yes"]})
    for threat in ("rewrites", "linf"):
        out = tmp_path / threat
        options = ["--data", tmp_path / "data.csv", "--out", out, "--threat", threat, "--eps", "0.05", "--json"]
        done = launched(2, "-m", "tasks", "attack", str(tmp_path / "model"), *map(str, options))
        printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert len(printed) == 1 and printed[0] == json.loads((out / "attack.json").read_text())
        alone = attack_file(
            tmp_path / "model", tmp_path / "data.csv", tmp_path / "one", threat=threat, eps=(0.05,)
        ).facts
        for point in (*printed[0].get("points", ()), *alone.get("points", ())):
            del point["seconds"]
        assert printed[0] == alone


def test_an_attack_on_some_rows_is_that_part_of_the_whole():
    model, x, y = example()
    model.eval()
    ball = Ball("linf", torch.linspace(0.02, 0.2, len(x), dtype=torch.float64), mask=torch.ones_like(x))
    rows = torch.tensor([9, 2, 4])
    for attack in (PGD(ball), Restarts(PGD(ball, steps=5), 2)):
        whole, part = attack.run(model, x, y), attack.run(model, x, y, rows=rows)
        assert torch.equal(whole.x_adv[rows], part.x_adv) and torch.equal(whole.forwards[rows], part.forwards)
        with pytest.raises(ValueError, match="at least one input"):
            attack.run(model, x, y, rows=rows[:0])
    found = evaluate(
        model, x, y, {"pgd": PGD}, threat=Ball("linf", 1.0, mask=ball.mask), eps=(0.05, 0.1), progress=False
    )
    plain = evaluate(model, x, y, {"pgd": PGD}, threat=Ball("linf", 1.0), eps=(0.05, 0.1), progress=False)
    assert [p.broken for p in found.points] == [p.broken for p in plain.points]  # a mask of each sample's own


def test_one_process_shares_with_nobody():
    rows = torch.tensor([4, 2, 7])
    own, places = share_of(rows, None)
    assert torch.equal(own, rows) and torch.equal(gathered({"a": own}, places, None)["a"], rows)
