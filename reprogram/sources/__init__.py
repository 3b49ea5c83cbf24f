"""Frozen pretrained models behind one interface."""

from __future__ import annotations

import difflib
import os
import re
from typing import Any, Literal

from torch import nn

from reprogram.config import buildable
from reprogram.sources.base import Features, Source
from reprogram.sources.black_box import BlackBox
from reprogram.sources.catalogue import ENTRIES, SourceInfo, catalogue
from reprogram.sources.codecs import Batch, Codec, FeatureCodec, Record, TokenCodec

__all__ = [
    "Batch", "BlackBox", "Codec", "FeatureCodec", "Features", "Record", "Source", "SourceInfo", "TokenCodec",
    "catalogue", "load",
]  # fmt: skip


@buildable
def load(
    name_or_module: str | os.PathLike[str] | nn.Module, *, revision: str | None = None,
    weights: Literal["pretrained", "random"] = "pretrained", seed: int = 0, **options: Any,
) -> Source:  # fmt: skip
    """A frozen source by name, or around a module.

    `name_or_module` is a name of `catalogue()`, a local folder or a Hugging Face hub id, or any `nn.Module`, which also
    needs `codec`, `takes` and `width` (see `Source`). `weights="random"` gives the same architecture with weights drawn
    from `seed`, the control; so does the name it gets, such as "minimol:random0". `revision` pins a hub commit. Nothing
    is downloaded: a hub id must be in the local cache, unless `download=True` is passed.

    Raises: ValueError for an unknown name, or one whose package is absent (the sentence has the command for it);
    TypeError for a module without codec, takes and width.
    """
    if weights not in ("pretrained", "random"):
        raise ValueError(f"expected weights to be 'pretrained' or 'random', got {weights!r}; choose one")
    if isinstance(name_or_module, Source) and weights == "pretrained":
        return name_or_module
    if isinstance(name_or_module, nn.Module):
        source, spec = wrap(name_or_module, revision=revision or "", **options), None
    else:
        name = os.fspath(name_or_module)
        if control := re.fullmatch(r"(.+):random(\d+)", name):
            name, weights, seed = control[1], "random", int(control[2])
        source = named(name, revision, **options)
        spec = {"_target_": "reprogram.sources.load", "name_or_module": name, "revision": revision, "weights": weights}
        # the commit that was found is pinned; whether it was downloaded then is no part of the model
        spec |= {"seed": seed, **{key: value for key, value in options.items() if key != "download"}}
        if name not in ENTRIES and not os.path.isdir(name):  # noqa: PTH112 - the name may be a hub id, which is no path
            spec["revision"] = source.revision or revision
    source = source.randomised(seed) if weights == "random" else source
    source.spec = spec
    return source


def wrap(module: nn.Module, **options: Any) -> Source:
    """A module with its codec as a Source."""
    if isinstance(module, Source):
        return module
    absent = [key for key in ("codec", "takes", "width") if key not in options]
    if absent:
        raise TypeError(
            f"expected codec, takes and width with a module, got no {' and no '.join(absent)}; pass them to load"
        )
    return Source(module, name=options.pop("name", type(module).__name__), **options)


def named(name: str, revision: str | None, **options: Any) -> Source:
    """A catalogue name, else a folder or hub id."""
    if name in ENTRIES:
        if revision is not None:
            raise ValueError(
                f"expected no revision for the installed source '{name}', got {revision!r}; install the version you want"
            )
        return ENTRIES[name].load(**options)
    if not os.path.isdir(name):  # noqa: PTH112 - the name may be a hub id, which is no path
        near = difflib.get_close_matches(name.lower(), ENTRIES, n=1, cutoff=0.75)
        if near:
            raise ValueError(
                f"expected one of {', '.join(ENTRIES)}, a folder or a hub id, got {name!r}; did you mean {near[0]!r}?"
            )
    from reprogram.sources import hub

    return hub.load(name, revision, **options)
