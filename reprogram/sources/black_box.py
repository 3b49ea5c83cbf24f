"""Models that can only be asked: any callable from arrays to an array, with a count of what was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class BlackBox(nn.Module):
    """A callable as a network: arrays in, one array (B, width) out, no gradient.

    `queries` counts inputs (not calls) since the module was made, the unit in which a remote model is paid for.
    `file` is the model's file, whose SHA-256 stands for the weights in the digest of the source.
    """

    def __init__(self, function: Callable[..., Any], *, file: Path | None = None):
        super().__init__()
        self.function, self.queries = function, 0
        digest = hashlib.sha256(file.read_bytes()).digest() if file is not None else b""
        self.register_buffer("file", torch.tensor(list(digest), dtype=torch.uint8))

    @torch.no_grad()
    def forward(self, **batch: Tensor) -> Tensor:
        device = next(iter(batch.values())).device
        answer = np.asarray(self.function(**{key: value.detach().cpu().numpy() for key, value in batch.items()}))
        self.queries += len(answer)
        return torch.from_numpy(answer.astype(np.float32, copy=False)).to(device)


class OnnxRun:
    """Run an ONNX file on the CPU; `names` maps our keywords to the graph's inputs, `floats` are cast to float32."""

    def __init__(self, path: Path, names: Mapping[str, str], *, floats: Sequence[str] = ()):
        self.path, self.names, self.floats, self._session = path, dict(names), tuple(floats), None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {
            "_session": None
        }  # a session cannot be copied or pickled; it is opened again when needed

    def __call__(self, **arrays: np.ndarray) -> np.ndarray:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        feeds = {
            self.names[key]: value.astype(np.float32) if key in self.floats else value for key, value in arrays.items()
        }
        return self._session.run(None, feeds)[0]
