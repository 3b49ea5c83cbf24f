"""The model card that travels with an artefact, filled from its config only."""

from __future__ import annotations

from typing import Any

from reprogram.errors import DataError

LABELS = {"source": "Data", "smiles": "SMILES column", "target": "Target", "license": "Licence of the data"}


def model_card(config: dict[str, Any], size: int) -> str:
    """README.md of an artefact: what it is, on which source, for which task, how well, how to load it."""
    from huggingface_hub import ModelCard, ModelCardData

    task, metrics = config["metadata"].get("task", {}), config["metadata"].get("metrics", {})
    source = config["source"]
    data = ModelCardData(
        library_name="reprogram", license="other", tags=["model-reprogramming", task.get("kind", "unknown")]
    )
    lines = [
        f"# {task.get('name', 'Reprogrammed model')} by reprogramming `{source['name']}`",
        "",
        f"A frozen `{source['name']}` (weights {source['digest']}, {source.get('license') or 'licence not stated'}) with "
        f"{learned(config['program'])} of {size / 1e6:.2f} MB. The source itself is not in this folder.",
        "",
        f"- Program: `{target(config['program'])}`",
        f"- Map: `{target(config['mapping'])}`",
        *(f"- {LABELS.get(key, key.replace('_', ' ').capitalize())}: {listed(value)}" for key, value in task.items()),
        "",
        *readouts_table(config["readouts"]),
        *metrics_table(metrics),
        "## Use",
        "",
        "```python",
        "from reprogram import Reprogrammed, predict",
        "",
        'model = Reprogrammed.from_pretrained("path/to/this/folder")',
        'predict(model, ["CCO"])',
        "```",
        "",
        "Trained with " + ", ".join(f"{k} {v}" for k, v in config["versions"].items()) + ".",
        "",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def target(spec: Any) -> str:
    """Short class name of a spec."""
    return spec["_target_"].rpartition(".")[2] if isinstance(spec, dict) and "_target_" in spec else str(spec)


def learned(spec: Any) -> str:
    """What was learned, in words: only a map where no program changes anything."""
    return "a learned output map" if set(programs(spec)) == {"Identity"} else "a learned program and output map"


def programs(spec: Any) -> list[str]:
    """Class names of a program, or of those side by side."""
    return [name for one in spec["programs"] for name in programs(one)] if "programs" in spec else [target(spec)]


def listed(value: Any) -> str:
    """A list as its items."""
    return ", ".join(map(listed, value)) if isinstance(value, list) else str(value)


def readouts(model: Any) -> list[dict[str, Any]]:
    """Of a stack: which sources each readout reads, programmed or not, and its weight; empty for other maps."""
    members = getattr(model.mapping, "members", [])
    places = getattr(model.source, "columns", ())
    names = []
    for program, source in zip(
        getattr(model.program, "programs", ()), getattr(model.source, "members", ()), strict=True
    ):
        names.append(source.name if type(program).__name__ == "Identity" else f"{source.name} (reprogrammed)")
    whole = dict(zip(places, names, strict=True))
    return [
        {
            "reads": [whole.get(block, "all") for block in member.columns],
            "map": type(member).__name__,
            "weight": float(weight),
        }
        for member, weight in zip(members, getattr(model.mapping, "weights", ()), strict=True)
    ]


def readouts_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown rows of a stack's readouts, heaviest first, and what the reprogrammed source has of the weight."""
    if not rows:
        return []
    share = sum(row["weight"] for row in rows if any("reprogrammed" in name for name in row["reads"]))
    lines = [
        f"| {' + '.join(r['reads'])} | {r['map']} | {r['weight']:.2f} |"
        for r in sorted(rows, key=lambda r: -r["weight"])
    ]
    said = f"The predictions are a weighted mean of these readouts; those of the reprogrammed source have {share:.0%} of the weight."
    return ["## Readouts", "", said, "", "| reads | map | weight |", "| --- | --- | --- |", *lines, ""]


def checked_metadata(metadata: Any) -> dict[str, Any]:
    """`metadata` in the form that cards and predictions read, or a DataError."""
    fine = isinstance(metadata, dict) and all(
        isinstance(metadata.get(k, {}), dict) for k in ("task", "metrics", "training")
    )
    if fine:
        task, metrics = metadata.get("task", {}), metadata.get("metrics", {})
        fine = all(isinstance(task.get(key, []), list) for key in ("target", "classes", "label_classes"))
        fine = fine and all(isinstance(e, dict) and {"value", "low", "high", "n"} <= set(e) for e in metrics.values())
    if not fine:
        raise DataError(
            "expected metadata with a mapping task (target and classes as lists) and a mapping metrics of value, low, high "
            f"and n, got {str(metadata)[:80]}; see save_pretrained"
        )
    return metadata


def metrics_table(metrics: dict[str, Any]) -> list[str]:
    """Markdown rows of test metrics with their 95 % intervals; nothing when none were recorded."""
    if not metrics:
        return []
    rows = [f"| {k} | {v['value']:.3f} | {v['low']:.3f} to {v['high']:.3f} | {v['n']} |" for k, v in metrics.items()]
    head = [
        "## Held-out test rows",
        "",
        "| metric | value | 95 % bootstrap interval | n |",
        "| --- | --- | --- | --- |",
    ]
    return [*head, *rows, ""]
