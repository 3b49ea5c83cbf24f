"""Networks that certifiers are measured on: two shapes, each trained plainly and on interval bounds, and kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attacks import data
from reprogram.files import atomic_file


def network(name: str, folder: Path) -> nn.Sequential:
    """The trained network, from its file when there is one."""
    kind, way = name.split("_")
    torch.manual_seed(0)
    flat = [nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    maps = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()]
    head = [nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10)]
    model, file = nn.Sequential(*(flat if kind == "mlp" else maps + head)), folder / f"{name}.pt"
    if not file.is_file():
        x, y, _, _ = data()
        trained(model, x, y, eps=0.1 if way == "ibp" else 0.0)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as path:
            torch.save(model.state_dict(), path)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval().requires_grad_(False)


def trained(model: nn.Sequential, x: Tensor, y: Tensor, *, eps: float, epochs: int = 6) -> None:
    """Adam on cross-entropy; with an eps, half of it on interval bounds in the end, both growing from a tenth of the steps to
    six tenths (Gowal et al., arXiv:1810.12715). A benchmark's network, not the product's training loop."""
    from tqdm.auto import tqdm

    optimizer, generator = torch.optim.Adam(model.parameters(), 5e-4 if eps else 1e-3), torch.Generator().manual_seed(0)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=generator).split(128)]
    for step, rows in enumerate(tqdm(batches, desc="train", mininterval=10)):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        grown = min(max((step / len(batches) - 0.1) / 0.5, 0.0), 1.0)
        if eps and grown:
            worst = F.cross_entropy(worst_logits(model, x[rows], y[rows], grown * eps), y[rows])
            loss = (1 - grown / 2) * loss + grown / 2 * worst
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def worst_logits(model: nn.Sequential, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Interval bounds: the label's smallest, the others' largest logits."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    for layer in model:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            middle, reach = layer((low + high) / 2), (high - low) / 2
            size = layer.weight.abs()
            if isinstance(layer, nn.Linear):
                spread = F.linear(reach, size)
            else:
                spread = F.conv2d(reach, size, None, layer.stride, layer.padding)
            low, high = middle - spread, middle + spread
        else:
            low, high = layer(low), layer(high)
    return torch.where(F.one_hot(y, high.shape[1]).bool(), low, high)
