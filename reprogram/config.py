"""Objects to plain specs and back: the one form behind repr, YAML, JSON, the command line and the artefact."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reprogram.errors import DataError

PACKAGES = ("reprogram", "adversarial", "certify", "tasks")
T = TypeVar("T", bound=type)
M = TypeVar("M", bound=Callable[..., Any])
NEVER = {"download", "trust_remote_code"}  # no file may bring code or weights from elsewhere


def configurable(cls: T) -> T:
    """Class decorator: remember the constructor arguments so that `to_spec` can write them down."""
    original = cls.__init__

    @functools.wraps(original)
    def remember(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(original).bind(self, *args, **kwargs)
        original(self, *args, **kwargs)
        if "_arguments" not in self.__dict__:
            object.__setattr__(self, "_arguments", dict(list(bound.arguments.items())[1:]))

    cls.__init__ = remember
    return buildable(cls)


def buildable(maker: M) -> M:
    """Decorator: a spec may name this class or function. Nothing else of ours can be called from a file."""
    maker._buildable = True
    return maker


def to_spec(value: Any) -> Any:
    """`value` as JSON-able data: a configurable object becomes `{"_target_": "package.module.Class", **arguments}`."""
    arguments = getattr(value, "_arguments", None)
    if isinstance(spec := getattr(value, "spec", None), dict):  # a source, by how it was loaded
        return spec
    if isinstance(arguments, dict):
        target = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"_target_": target, **{key: to_spec(item) for key, item in arguments.items()}}
    if isinstance(value, Mapping):
        return {str(key): to_spec(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_spec(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"expected an object built from plain arguments, got {type(value).__name__}; decorate its class with @configurable"
    )


def build(spec: Any) -> Any:
    """Inverse of `to_spec`. A `_target_` outside our four packages, or an unknown argument, raises DataError."""
    if isinstance(spec, Sequence) and not isinstance(spec, (str, bytes)):
        return [build(item) for item in spec]
    if not isinstance(spec, Mapping):
        return spec
    if "_target_" not in spec:
        return {key: build(item) for key, item in spec.items()}
    target = resolve(str(spec["_target_"]))
    arguments = {key: build(item) for key, item in spec.items() if key != "_target_"}
    signature = inspect.signature(target).parameters
    accepted = [name for name, p in signature.items() if p.kind is not p.VAR_KEYWORD]
    open_ended = len(accepted) < len(signature)
    unknown = sorted((set(arguments) - set(accepted)) & (NEVER if open_ended else set(arguments)))
    if unknown:
        raise DataError(
            f"expected arguments among {accepted} for {spec['_target_']}, got unknown {unknown}; remove or correct them"
        )
    try:
        return target(**arguments)
    except TypeError as error:
        raise DataError(f"could not build {spec['_target_']} from its config: {error}; check its arguments") from error


def resolve(target: str) -> Callable[..., Any]:
    """The class or function named by `target`, which must live in one of our packages."""
    module, _, name = target.rpartition(".")
    if module.split(".")[0] not in PACKAGES:
        raise DataError(
            f"expected a _target_ inside {', '.join(PACKAGES)}, got '{target}'; configs never load other code"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise DataError(
            f"expected an existing class or function, got _target_ '{target}'; check its spelling"
        ) from None
    own = getattr(found, "__module__", "").split(".")[0] in PACKAGES
    if not own or not getattr(found, "__dict__", {}).get("_buildable", False):
        raise DataError(f"expected a _target_ that a config may build, got '{target}'; name a program, map or source")
    return found


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON config file as a dict; DataError with one sentence when it is not one."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"expected a readable YAML config, got {path} ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise DataError(f"expected a YAML mapping of option to value in {path}, got {type(content).__name__}")
    return content
