"""A frozen model behind HTTP: the client that a `BlackBox` asks, and a small server that answers for a source."""

from __future__ import annotations

import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import numpy as np
import torch

from reprogram.errors import DataError, Unanswered
from reprogram.sources.base import Source

TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
NOT_SERVED = (425, 429, 503)  # refused before any work was done, so not paid for
KEYS = ("outputs", "probabilities", "logits", "predictions")


class Endpoint:
    """A model that answers POST requests: the function inside a `BlackBox`.

    With `format="json"` the body is `{"inputs": [...]}`, nested lists, and the answer a list of rows or a mapping with one
    under "outputs", "probabilities", "logits" or "predictions". With `format="npy"` body and answer are NumPy files,
    several times smaller for images. `headers` may carry a token; `timeout` is in seconds.

    Raises: Unanswered for time-outs, dropped connections, rate limits (with the seconds of Retry-After) and answers that
    are no numbers; DataError for an address that will never answer.
    """

    def __init__(
        self, url: str, *, format: Literal["json", "npy"] = "json", headers: dict[str, str] | None = None, timeout: float = 30.0
    ):  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise DataError(f"expected an address that starts with http:// or https://, got {url[:80]!r}")
        if format not in ("json", "npy"):
            raise DataError(f"expected format json or npy, got {format!r}")
        self.url, self.format, self.headers, self.timeout = url, format, dict(headers or {}), timeout

    def __call__(self, array: np.ndarray) -> np.ndarray:
        import httpx

        kind = "application/json" if self.format == "json" else "application/x-npy"
        try:
            answer = httpx.post(
                self.url, content=packed(array, self.format), headers={"Content-Type": kind} | self.headers,
                timeout=self.timeout,
            )  # fmt: skip
        except httpx.ConnectError as error:
            raise Unanswered(f"no connection to {self.url}: {error}", billed=False) from error
        except httpx.TransportError as error:
            raise Unanswered(f"no answer from {self.url}: {type(error).__name__} {error}".rstrip()) from error
        if answer.status_code in TRY_AGAIN:
            raise Unanswered(
                f"status {answer.status_code} from {self.url}", billed=answer.status_code not in NOT_SERVED,
                after=seconds(answer.headers.get("Retry-After")),
            )  # fmt: skip
        if answer.status_code != 200:
            raise DataError(
                f"expected status 200 from {self.url}, got {answer.status_code} ({answer.text[:80]!r}); check address and token"
            )
        return unpacked(answer.content, answer.headers.get("Content-Type", ""), self.url)


def seconds(text: str | None) -> float | None:
    """Retry-After as seconds; a date, its other form, is left to the own waiting time."""
    return float(text) if text and text.replace(".", "", 1).isdigit() else None


def packed(array: np.ndarray, format: str) -> bytes:
    """A request's body."""
    if format == "json":
        return json.dumps({"inputs": array.tolist()}).encode()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def unpacked(content: bytes, kind: str, url: str) -> np.ndarray:
    """An answer's body as an array; what is no such thing, for example the page of a proxy, is no answer."""
    try:
        if "npy" in kind:
            return np.load(io.BytesIO(content), allow_pickle=False)
        value = json.loads(content)
        if isinstance(value, dict):
            value = value[next(key for key in KEYS if key in value)]
        return np.asarray(value, dtype=np.float32)
    except (ValueError, TypeError, KeyError, StopIteration, EOFError) as error:
        raise Unanswered(f"expected rows of numbers from {url}, got {content[:40]!r}") from error


class Handler(BaseHTTPRequestHandler):
    """POST a batch, get a row of probabilities, logits or features for each input."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.respond(self.rows_in(body))
        except (ValueError, TypeError, KeyError, EOFError, RuntimeError) as error:
            self.reply(400, "text/plain", " ".join(str(error).split())[:200].encode())

    @property
    def kind(self) -> str:
        """What the client sends and wants back."""
        return "npy" if "npy" in self.headers.get("Content-Type", "") else "json"

    def rows_in(self, body: bytes) -> np.ndarray:
        """The batch in a request."""
        if self.kind == "npy":
            return np.load(io.BytesIO(body), allow_pickle=False)
        return np.asarray(json.loads(body)["inputs"], dtype=np.float32)

    def respond(self, rows: np.ndarray) -> None:
        """Send the source's answer."""
        values = self.server.answer(rows)
        if self.kind == "npy":
            return self.reply(200, "application/x-npy", packed(values, "npy"))
        self.reply(200, "application/json", json.dumps({"outputs": values.tolist()}).encode())

    def reply(self, status: int, kind: str, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: whoever serves for long has a better log."""


class Server(ThreadingHTTPServer):
    """A frozen source that answers at `http://host:port/`; `served` counts the inputs it answered.

    Serve with `serve_forever()`, from another process or thread. It checks nobody's identity: keep it on a machine or in a
    network of your own.
    """

    daemon_threads = True

    def __init__(
        self,
        source: Source,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        returns: str = "probabilities",
        handler: Any = Handler,
    ):
        super().__init__((host, port), handler)
        self.source, self.returns, self.served = source, returns, 0
        self.key = {"image": "pixels", "series": "series", "features": "features"}.get(source.takes)
        if self.key is None:
            raise DataError(
                f"expected a source of images, series or features to serve, got '{source.name}' ({source.takes})"
            )

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    @torch.no_grad()
    def answer(self, array: np.ndarray) -> np.ndarray:
        """What the source says to a batch."""
        values = self.source({self.key: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))})
        self.served += len(values)
        return (values.softmax(1) if self.returns == "probabilities" else values).numpy()
