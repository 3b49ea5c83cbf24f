"""The model card that travels with an artefact, filled from its config only."""

from __future__ import annotations

from typing import Any

from reprogram.errors import DataError


def model_card(config: dict[str, Any], size: int) -> str:
    """README.md of an artefact: what it is, on which source, for which task, how well, how to load it."""
    from huggingface_hub import ModelCard, ModelCardData

    task, metrics = (config["metadata"].get(key, {}) for key in ("task", "metrics"))
    estimates = metrics.values() if isinstance(metrics, dict) else [None]
    if not isinstance(task, dict) or not all(
        isinstance(e, dict) and {"value", "low", "high", "n"} <= set(e) for e in estimates
    ):
        raise DataError(
            "expected task as a mapping of facts and metrics as mappings with value, low, high and n, got "
            f"{task!r:.60} and {metrics!r:.60}; see save_pretrained"
        )
    source = config["source"]
    data = ModelCardData(
        library_name="reprogram", license="other", tags=["model-reprogramming", task.get("kind", "unknown")]
    )
    lines = [
        f"# {task.get('name', 'Reprogrammed model')} by reprogramming `{source['name']}`",
        "",
        f"A frozen `{source['name']}` (weights {source['digest']}, {source.get('license') or 'licence not stated'}) with a "
        f"learned program and output map of {size / 1e6:.2f} MB. The source itself is not in this folder.",
        "",
        f"- Program: `{target(config['program'])}`",
        f"- Map: `{target(config['mapping'])}`",
        *(f"- {key.replace('_', ' ').capitalize()}: {value}" for key, value in task.items()),
        "",
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
