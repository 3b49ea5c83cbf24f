"""`fit` and `predict`: the only training loop. A defence is a loss, black-box learning a gradient step, a refresh a hook."""

from __future__ import annotations

import atexit
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprogram.errors import BudgetError, DataError
from reprogram.features import features_of, no_text
from reprogram.gradient import GradientStep, backprop
from reprogram.history import History, Hook, Training, refresh
from reprogram.loop import Loop
from reprogram.mapping import probabilities
from reprogram.model import Reprogrammed
from reprogram.objectives import Loss, Optimizer, adam, supervised

__all__ = [
    "History", "Hook", "Training", "default_accelerator", "fit", "predict", "predict_stream", "progress_bar", "refresh",
    "start_trackers",
]  # fmt: skip
CHUNK = 4096  # inputs predicted at once


def fit(
    model: Reprogrammed,
    data: Mapping[str, tuple[Sequence[Any], Any]],
    *,
    loss: Loss = supervised,
    gradient: GradientStep = backprop,
    optimizer: Optimizer | None = None,
    epochs: int = 30,
    batch_size: int = 32,
    patience: int | None = None,
    clip: float = 1.0,
    hooks: Sequence[Hook] = (),
    seed: int = 0,
    accelerator: Any = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 50,
    progress: bool = True,
) -> History:
    """Train program and map; the source stays bit-identical. The model is left at its best epoch, in eval mode.

    Args:
        data: `{"train": (inputs, targets)}` and optionally `"validation"`, the only rows that choose the epoch. Targets
            are values (n,) or (n, T), class indices (n,), or 0/1/NaN labels (n, T).
        loss: `(model, x, y) -> scalar`; `supervised`, `evidence`, or your own.
        gradient: fills `p.grad`; `backprop` for white-box sources.
        optimizer: `(model) -> torch optimizer`; default `adam()`. The learning rate follows a half cosine to 0, unless the
            optimizer brings a `decay` of its own.
        epochs, batch_size: passes over the training rows, and rows per step over all processes together.
        patience: epochs without a better validation loss before stopping; None, or no validation rows: never.
        clip: largest gradient norm.
        hooks: called after every epoch with a `Training`.
        accelerator: an `accelerate.Accelerator` (device, precision, processes, trackers); one is made when None. Trackers
            that it names and you have not started are started as project "reprogram".
        checkpoint_dir: a checkpoint is written there every `checkpoint_every` steps and after each epoch; a run started
            again with the same arguments goes on from it and ends bit-identical (CPU) to one never stopped.

    Where a black box has no budget left for a further step the training ends and keeps what it has learned;
    `history.stopped` says so.

    Raises:
        BudgetError: the budget of a black box does not suffice for the first step.
        DataError: empty or unequal data, a class beyond the map's outputs, a non-finite loss, or a checkpoint of
            another run (other rows, parts, loss, optimizer or plan).
    """
    from accelerate.utils import set_seed

    accelerator = accelerator or default_accelerator()
    loop = Loop(model, data, loss, gradient, optimizer or adam(), epochs, batch_size, clip, seed, accelerator)
    set_seed(seed)
    start_trackers(loop.accelerator)
    history, best, first_step = loop.resume(checkpoint_dir)
    bar, resumed = progress_bar(loop, history, progress), bool(history.epochs or first_step)
    try:
        for epoch in range(len(history.epochs), 0 if history.stopped else epochs):
            total = loop.run_epoch(epoch, first_step, checkpoint_dir, checkpoint_every, history, best, bar)
            first_step = 0
            losses = epoch_losses(loop, total, history, best)
            loop.accelerator.log(losses, step=epoch)
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            state = Training(model, epoch, history, loop.training_features, loop.refit)
            for hook in hooks:
                hook(state)
            waited = epoch - history.best_epoch
            if state.stop or (patience is not None and waited >= patience):
                history.stopped = "hook" if state.stop else f"no better validation loss for {patience} epochs"
            loop.checkpoint(checkpoint_dir, history, best, step=0)
            if history.stopped:
                break
    except BudgetError as error:  # in a step, a validation or a hook
        if not (loop.taken or resumed):
            raise
        history.stopped = f"no budget left ({error})"
    bar.close()
    loop.finish(best["state"])
    return history


def epoch_losses(loop: Loop, train_loss: float, history: History, best: dict[str, Any]) -> dict[str, float]:
    """The losses of the epoch that just ended, written into the history; without validation rows the last is the best."""
    epoch, losses, validates = len(history.epochs), {"train_loss": train_loss}, "validation" in loop.parts
    if validates:
        loop.refit()
        losses["validation_loss"] = loop.validation_loss()
    history.epochs.append({"epoch": epoch} | losses)
    if not validates:
        history.best_epoch = epoch
    elif losses["validation_loss"] < best["loss"]:
        best.update(loss=losses["validation_loss"], state=copy.deepcopy(loop.model.learned_state()))
        history.best_epoch = epoch
    return losses


def start_trackers(accelerator: Any) -> None:
    """Start what the user asked for by `log_with=`, as Accelerate wants before the first `log`."""
    if accelerator.log_with and not accelerator.trackers:
        accelerator.init_trackers("reprogram")


def default_accelerator() -> Any:
    """An `Accelerator` on the GPU where there is one; else told so, or two processes on a CPU would not know each other."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        atexit.unregister(part)
        atexit.register(part)
    return accelerator


def part() -> None:
    """Let go of the other processes: torch aborts now and then when Python ends before that."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def progress_bar(loop: Loop, history: History, shown: bool):
    """tqdm over steps on the main process; silent when training is over in a blink."""
    from tqdm.auto import tqdm

    return tqdm(
        total=loop.steps, initial=len(history.epochs) * loop.per_epoch, desc="fit", unit="step", delay=2,
        disable=not shown or not loop.accelerator.is_main_process,
    )  # fmt: skip


def predict(model: Reprogrammed, inputs: Sequence[Any], *, accelerator: Any = None) -> np.ndarray:
    """Predictions for raw inputs, in their order; memory does not grow with their number.

    Returns values in the user's units (n, T), class probabilities (n, C), or label probabilities (n, T).
    """
    if not len(inputs):
        raise DataError("expected at least one input to predict, got none; check the file or the list")
    return np.concatenate(list(predicted(model, list(no_text(inputs)), CHUNK, accelerator)))


def predict_stream(
    model: Reprogrammed, inputs: Iterable[Any], *, batch_size: int = 256, accelerator: Any = None
) -> Iterator[np.ndarray]:
    """Predictions for a stream of raw inputs, one row (T,) or (C,) each as in `predict`, while it is read.

    `batch_size` inputs are read, predicted and forgotten at a time, so that neither stream nor answer has to end or to fit
    into memory. From a streamed data set: `predict_stream(model, (row["image"] for row in dataset))`. A row number in an
    error counts from the start of its batch.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch_size of at least 1, got {batch_size}")
    return chain.from_iterable(predicted(model, no_text(inputs), batch_size, accelerator))


def predicted(model: Reprogrammed, inputs: Iterable[Any], size: int, accelerator: Any) -> Iterator[np.ndarray]:
    """Predictions (size, T) of each piece of the inputs."""
    stream = iter(inputs)
    while piece := list(islice(stream, size)):
        model.eval()
        with torch.no_grad():
            output = model.mapping(features_of(model, model.encode(piece), accelerator))
            found = probabilities(model.mapping.kind, output).cpu().numpy()
        yield found
