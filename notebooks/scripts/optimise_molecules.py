"""Improve the drug-likeness of hits under constraints, resumable and over several processes.

    python notebooks/scripts/optimise_molecules.py hits.csv runs/optimised
    torchrun --nproc_per_node 2 notebooks/scripts/optimise_molecules.py hits.csv runs/optimised

Run it again after a stop: what was answered is in the folder's ledger and is not asked again.
"""

import sys

from tasks.molecules import Alerts, Range, Similarity, optimize, read_molecules

CONSTRAINTS = (Similarity(0.4), Range("weight", high=500), Range("logp", 0, 5), Alerts())


def main(file: str, out: str, budget: int = 500) -> None:
    starts = read_molecules(file, largest_fragment=True)
    for row in starts.report.dropped:
        print(f"row {row.row} {row.input!a} is left out: {row.reason}", file=sys.stderr)
    result = optimize(starts.inputs, "qed", CONSTRAINTS, budget=budget, out=out, seed=0)
    if result.main:
        print(result.frame()[["start", "smiles", "start_qed", "qed", "similarity", "calls"]].to_string())
        print(f"{result.ledger['queries']:g} molecules asked for, all of them in {out}/calls.csv")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(
            "expected a file of molecules and a folder, for example: optimise_molecules.py hits.csv runs/optimised"
        )
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:4]))
