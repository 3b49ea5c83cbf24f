"""`Reprogrammed = mapping ∘ frozen source ∘ program`: composed, frozen where it must be, saved without the source."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from reprogram.config import build, to_spec
from reprogram.errors import DataError
from reprogram.features import column, move, no_text
from reprogram.files import atomic_folder
from reprogram.mapping import per_row_loss
from reprogram.side_by_side import CACHED, collate_records, rebuilt
from reprogram.sources.base import Source
from reprogram.sources.codecs import Batch, Record

if TYPE_CHECKING:
    from reprogram.continuous import View

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1


class Reprogrammed(nn.Module):
    r"""A frozen pretrained model made to do another task: $f(x) = \text{mapping}(\text{source}(\text{program}(x)))$.

    Only `program` and `mapping` are trained and saved; `source` is frozen, in eval mode, and named in the artefact by
    id, revision and the digest of its weights.

    `state_dict` holds program and mapping only.

    Legend: B batch, S source features, T outputs. `forward(x)` takes a batch made by `collate` (a dict of tensors, or
    raw inputs such as SMILES strings) and returns logits, or values in the user's units, (B, T); with `labels` it
    returns `{"loss", "logits"}`, which is what `transformers.Trainer` wants.

    Reference: Chen, "Model Reprogramming: Resource-Efficient Cross-Domain Machine Learning", AAAI 2024,
    arXiv:2202.10629.
    """

    def __init__(self, program: nn.Module, source: Source, mapping: nn.Module):
        super().__init__()
        program.bind(source)
        self.program, self.source, self.mapping = program, source, mapping
        self.metadata: dict[str, Any] = {}
        self.register_state_dict_post_hook(leave_out_source)
        self.register_load_state_dict_post_hook(miss_no_source)

    def encode(self, inputs: Sequence[Any]) -> list[Record]:
        """Raw inputs to one record of tensors each: pure, so done once and kept."""
        return self.program.encode(no_text(inputs))

    def collate(self, records: Sequence[Record]) -> Batch:
        """Records to one batch, padded to its longest."""
        return collate_records(self.program, records)

    def features(self, x: Batch) -> Tensor:
        """Frozen features of the programmed input, (B, S)."""
        return x[CACHED] if CACHED in x else self.source(self.program(x))

    def forward(self, x: Batch | Sequence[Any], labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        if not isinstance(x, dict):
            x = move(self.collate(self.encode(x)), next(chain(self.parameters(), self.buffers())).device)
        output = self.mapping(self.features(x))
        if labels is None:
            return output
        return {"loss": self.row_losses(output, labels).mean(), "logits": output}

    def continuous(self, inputs: Sequence[Any]) -> View:
        """The model as a module of numbers that can be moved, around these inputs: `.module`, `.inputs` and `.free`, 1 where
        they may. Pixels, samples or features in front of the program; for tokens the embeddings behind it.
        """
        from reprogram.continuous import continuous

        return continuous(self, inputs)

    def row_losses(self, output: Tensor, y: Tensor) -> Tensor:
        """The task's own loss of each row, (B,)."""
        y = column(y, self.mapping.kind)
        return per_row_loss(self.mapping.kind, output, y, getattr(self.mapping, "scale", torch.ones(())))

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of program and mapping: all that `fit` may change."""
        return [(name, p) for name, p in self.named_parameters() if not name.startswith("source.") and p.requires_grad]

    def learned_state(self) -> dict[str, Tensor]:
        """State of program and mapping only."""
        return dict(self.state_dict())

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state)

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> Path:
        """Write config.json, model.safetensors and README.md into `folder`, all or nothing; returns the folder.

        `metadata` lands in the config; of it the card shows `task`, a mapping of facts, and `metrics`, estimates by name
        with value, low, high and n. Raises DataError when the folder cannot be written or `metadata` has another form.
        """
        from reprogram.card import checked_metadata, model_card, readouts

        metadata = to_spec(self.metadata | metadata)
        tensors = save_tensors({k: v.detach().cpu().contiguous() for k, v in self.learned_state().items()})
        config = {
            "format": FORMAT,
            "versions": versions(),
            "program": to_spec(self.program),
            "source": {
                "name": self.source.name,
                "revision": self.source.revision,
                "license": self.source.license,
                "digest": self.source.digest,
                "spec": self.source.spec,
            },
            "mapping": to_spec(self.mapping),
            "weights_sha256": hashlib.sha256(tensors).hexdigest(),
            "readouts": readouts(self),
            "metadata": checked_metadata(metadata),
        }
        card = model_card(config, len(tensors))
        with atomic_folder(folder) as writing:
            (writing / WEIGHTS).write_bytes(tensors)
            (writing / CARD).write_text(card, encoding="utf-8")
            (writing / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self.metadata = metadata
        return Path(folder)

    @classmethod
    def from_pretrained(
        cls, folder_or_id: str | Path, *, source: Source | Sequence[Source] | None = None, revision: str | None = None
    ) -> Reprogrammed:
        """Rebuild from an artefact folder or a hub id. Nothing is unpickled and no code of the artefact runs.

        `source` is needed only when the artefact was trained on a module that no name can bring back (or on several, in
        their order). Raises DataError for a missing, truncated or altered artefact and for a source whose digest differs;
        warns of a source with these weights but another revision, for example after RDKit was upgraded.
        """
        from reprogram.card import checked_metadata

        config, tensors = read_artefact(folder_or_id, revision)
        try:
            spec = config["source"]
            source = rebuilt(spec["spec"], spec["name"], source)
            if source.revision != spec["revision"]:
                warnings.warn(
                    f"expected source '{spec['name']}' at {spec['revision'] or 'no revision'}, got {source.revision or 'none'}; "
                    "predictions may differ from those of the training",
                    stacklevel=2,
                )
            if source.digest != spec["digest"]:
                raise DataError(
                    f"expected source '{spec['name']}' with weights {spec['digest']}, got {source.digest}; "
                    "install the version this artefact was trained with, or train again"
                )
            model = cls(build(config["program"]), source, build(config["mapping"]))
            model.load_learned_state(tensors)
        except DataError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(
                f"expected a complete artefact in {folder_or_id}, got one that does not fit ({reason})"
            ) from error
        model.metadata = checked_metadata(config.get("metadata", {}))
        return model.eval()

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the artefact (never the source) to the Hugging Face hub; returns the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            return str(api.upload_folder(repo_id=repo_id, folder_path=self.save_pretrained(Path(folder) / "artefact")))


def leave_out_source(model: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """The source never changes and may stand in two places: whoever saves a state saves what was learned."""
    for key in [key for key in state if key.startswith(f"{prefix}source.")]:
        del state[key]


def miss_no_source(model: nn.Module, incompatible: Any) -> None:
    """What `leave_out_source` left out is not missing when a state is loaded."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if ".source." not in f".{key}"]


def read_artefact(folder_or_id: str | Path, revision: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of an artefact, checked against the recorded SHA-256."""
    folder = Path(folder_or_id)
    if not folder.is_dir():
        folder = download(str(folder_or_id), revision)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"expected an artefact with {CONFIG} and {WEIGHTS} in {folder_or_id}, got none of {missing}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        expected, newest = config["weights_sha256"], config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"expected a valid {CONFIG} in {folder_or_id}, got a damaged one; copy it again") from error
    if not isinstance(newest, int) or newest > FORMAT:
        raise DataError(f"expected artefact format {FORMAT} or older, got {newest}; upgrade reprogram")
    data = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise DataError(
            f"expected the weights recorded in {CONFIG}, got a truncated or altered {WEIGHTS}; copy it again"
        )
    try:
        return config, load_tensors(data)
    except SafetensorError as error:
        raise DataError(
            f"expected readable weights in {folder_or_id}, got damaged ones ({error}); copy it again"
        ) from error


def download(repo_id: str, revision: str | None) -> Path:
    """The folder of an artefact on the hub, in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"expected an artefact folder or a reachable hub id, got '{repo_id}'; check the path"
        ) from error


def versions() -> dict[str, str]:
    """Versions that a reader needs to repeat a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("reprogram", "torch", "transformers", "accelerate", "rdkit", "numpy", "scikit-learn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
