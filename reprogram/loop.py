"""The moving parts of `fit`: encoded data, batches, one step, validation, checkpoints."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reprogram.batching import bucketed_batches
from reprogram.errors import BudgetError, DataError
from reprogram.features import column, features_of, move, source_features, target_tensor
from reprogram.files import atomic_file
from reprogram.gradient import without_gradient
from reprogram.history import History
from reprogram.objectives import cosine
from reprogram.side_by_side import CACHED, frozen_members


class Loop:
    """The moving parts of `fit`: encoded data, batches, one step, validation, checkpoints."""

    def __init__(self, model, data, loss, gradient, optimizer, epochs, batch_size, clip, seed, accelerator):
        self.accelerator = accelerator
        self.model, self.loss, self.gradient = model.to(self.accelerator.device), loss, gradient
        self.batch_size, self.clip, self.seed = batch_size, clip, seed
        self.rows = hashlib.sha256()
        self.parts = {name: self.encoded(name, *pair) for name, pair in data.items() if name in ("train", "validation")}
        if "train" not in self.parts:
            raise DataError(
                f"expected data with a 'train' part, got {sorted(data)}; pass {{'train': (inputs, targets)}}"
            )
        self.taken, self.known = 0, None  # steps of this process; features of the training rows after so many
        self.model.eval()
        self.cache_frozen_features()
        with torch.no_grad():
            self.model.mapping.prepare(*self.training_features())
        self.per_epoch = math.ceil(len(self.parts["train"][0]) / batch_size)
        self.steps = max(1, epochs * self.per_epoch)
        learns = any(True for _ in model.trainable())
        plain = optimizer(model) if learns else torch.optim.SGD([torch.zeros(())])  # a closed-form map alone
        decay = getattr(optimizer, "decay", cosine)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: decay(step, self.steps))
        self.optimizer = self.accelerator.prepare_optimizer(plain)
        self.identity = self.fingerprint(plain)
        getattr(gradient, "begin", lambda model: None)(model)

    def encoded(self, name: str, inputs: Sequence[Any], targets: Any) -> tuple[list, Tensor, list[int]]:
        records = self.model.encode(list(inputs))
        y = target_tensor(targets, self.model.mapping.kind).to(self.accelerator.device)
        if len(records) != len(y) or not records:
            raise DataError(
                f"expected as many targets as inputs and at least one, got {len(records)} and {len(y)} in '{name}'"
            )
        if self.model.mapping.kind == "classification" and int(y.max()) >= self.model.mapping.outputs:
            raise DataError(
                f"expected classes below {self.model.mapping.outputs}, the map's outputs, got {int(y.max())} in '{name}'"
            )
        add_bytes(self.rows, [records, y])
        return records, y, [self.model.program.length(r) for r in records]

    def cache_frozen_features(self) -> None:
        """Where nothing is learned before the map, each row passes its source once in the whole training."""
        for key, program, source in frozen_members(self.model.program, self.model.source):
            for name, (records, y, _) in self.parts.items():
                own = records if key is None else [record[key] for record in records]
                rows = [{CACHED: row} for row in source_features(program, source, own, self.accelerator)]
                records = rows if key is None else [r | {key: row} for r, row in zip(records, rows, strict=True)]
                lengths = [1 if key is None else self.model.program.length(r) for r in records]
                self.parts[name] = (records, y, lengths)

    def batch(self, part: str, rows: Sequence[int]) -> tuple[Any, Tensor]:
        records, y, _ = self.parts[part]
        return move(self.model.collate([records[i] for i in rows]), self.accelerator.device), y[list(rows)]

    def step(self, rows: list[int]) -> float:
        """One update from the global batch `rows`, shared over processes; returns its loss."""
        whole, world = getattr(self.loss, "whole_batch", False), self.accelerator.num_processes
        mine = rows if whole else rows[self.accelerator.process_index :: world]
        share = 1 / world if whole else len(mine) / len(rows)
        x, y = self.batch("train", mine or rows[:1])  # a process without rows still takes part, with weight 0
        self.optimizer.zero_grad(set_to_none=True)

        def closure() -> Tensor:
            with self.accelerator.autocast():
                return self.loss(self.model, x, y) * share

        self.model.train()  # programs with dropout or noise; the source stays in eval mode
        try:
            parameters = [p for _, p in self.model.trainable()]
            step = (
                self.gradient if parameters else without_gradient
            )  # a solved map behind no program has nothing to learn
            loss = step(self.model, closure, self.accelerator)
        finally:
            self.model.eval()
        if world > 1:  # the program is tiny: reduce its gradients directly, the exact sum over the global batch
            for p in parameters:
                p.grad = self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, "sum")
            loss = self.accelerator.reduce(loss, "sum")
        self.accelerator.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        getattr(self.model.program, "project", lambda: None)()
        self.taken += 1
        return float(loss)

    def run_epoch(self, epoch, first_step, checkpoint_dir, every, history, best, bar) -> float:
        batches = bucketed_batches(self.parts["train"][2], self.batch_size, seed=self.seed, epoch=epoch)
        total = self.partial if first_step else 0.0
        for step, rows in enumerate(batches[first_step:], start=first_step):
            value = self.step(rows)
            if not math.isfinite(value):
                raise DataError(
                    f"expected a finite loss, got {value} in epoch {epoch}; lower the learning rate or scale the targets"
                )
            total = total + value * len(rows)
            bar.update()
            if (step + 1) % every == 0 and step + 1 < len(batches):
                self.partial = total
                self.checkpoint(checkpoint_dir, history, best, step=step + 1)
        return total / len(self.parts["train"][0])

    @torch.no_grad()
    def training_features(self) -> tuple[Tensor, Tensor]:
        records, y, _ = self.parts["train"]
        if self.known is None or self.known[0] != self.taken:
            self.known = self.taken, features_of(self.model, records, self.accelerator)
        return self.known[1], column(y, self.model.mapping.kind)

    def finish(self, best: dict[str, Tensor] | None) -> None:
        """Go back to the best epoch, if validation chose one, and solve the map for it."""
        if best is not None:
            self.model.load_learned_state(best)
        self.known = None  # also the last hook may have changed the model
        with suppress(BudgetError):  # with the budget spent the map stays as that epoch left it
            self.refit()

    def refit(self) -> None:
        """Solve the map again, if it is one to solve: on the CPU, where scikit-learn and scipy work in float64."""
        if not getattr(self.model.mapping, "solved", True):
            return
        features, y = (part.cpu() for part in self.training_features())
        self.model.mapping.cpu().refit(features, y)
        self.model.mapping.to(self.accelerator.device)

    @torch.no_grad()
    def validation_loss(self) -> float:
        records, y, _ = self.parts["validation"]
        output = self.model.mapping(features_of(self.model, records, self.accelerator))
        return float(self.model.row_losses(output, y).mean())

    def checkpoint(self, folder: str | Path | None, history: History, best: dict, *, step: int) -> None:
        if folder is None or not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.learned_state(), "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "rng": torch.get_rng_state(), "history": asdict(history), "best": best, "step": step,
            "partial": getattr(self, "partial", 0.0), "run": self.identity,
            "gradient": getattr(self.gradient, "state_dict", dict)(),
        }  # fmt: skip
        with atomic_file(Path(folder) / "checkpoint.pt") as path:
            try:
                torch.save(state, path)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(f"no room for a checkpoint: {error}") from error

    def fingerprint(self, optimizer: torch.optim.Optimizer) -> str:
        """What makes two runs the same run: rows, source, program and map, loss, and the plan of the training."""
        total = self.rows.copy()
        rates = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
        names = [getattr(part, "__qualname__", type(part).__name__) for part in (self.loss, self.gradient)]
        facts = [self.steps, self.batch_size, self.clip, self.seed, self.model.source.digest, names, rates]
        facts += [repr(getattr(part, "_arguments", part)) for part in (self.model.program, self.model.mapping)]
        add_bytes(total, facts)
        return total.hexdigest()

    def resume(self, folder: str | Path | None) -> tuple[History, dict[str, Any], int]:
        """State to go on from: a checkpoint of the same run, or a fresh start."""
        path = None if folder is None else Path(folder) / "checkpoint.pt"
        if path is None or not path.is_file():
            return History(), {"loss": math.inf, "state": None}, 0
        try:
            saved = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            if saved["run"] != self.identity:
                raise ValueError("another run")
            self.model.load_learned_state(saved["model"])
            self.known = None
            self.optimizer.load_state_dict(saved["optimizer"])
        except Exception as error:
            raise DataError(
                f"expected a checkpoint of this very run in {folder}, got one that does not fit; remove it to start over"
            ) from error
        self.schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"].cpu())
        self.partial = saved["partial"]
        getattr(self.gradient, "load_state_dict", lambda state: None)(saved["gradient"])
        return History(**saved["history"]), saved["best"], saved["step"]


def add_bytes(total: Any, value: Any) -> None:
    """Hash tensors, texts, and lists and mappings of them, in order."""
    if isinstance(value, Tensor):
        total.update(f"{value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            add_bytes(total, [key, value[key]])
    elif isinstance(value, list | tuple):
        for item in value:
            add_bytes(total, item)
    else:
        total.update(repr(value).encode())
