"""A model behind HTTP: MLflow's scoring protocol and plain uploads, with limits, one computation at a time."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from imgcls.errors import UserError
from imgcls.inference.labelling import Model, label_images
from imgcls.tracking.requests import Refused, read_images

GRACE_SECONDS = 10
"""For so long the requests that are there may still be answered when the server is asked to end."""
DRAIN_FACTOR = 4
"""So many times the largest body is read and thrown away of one that is not taken, for a client that sends all before
it reads the answer would else see a broken connection."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body_bytes: the longest body of a request.
        images: in a request, at most.
        requests: that are read or wait at once, the one being computed among them; more are told to come back.
        body_seconds: in which a body must have arrived.
        batch_size: images that the network computes at once.
    """

    body_bytes: int = 32 * 2**20
    images: int = 256
    requests: int = 16
    body_seconds: float = 60.0
    batch_size: int = 64


@dataclass(frozen=True)
class About:
    """Which model is served, as /health says it.

    Attributes:
        model: as it was asked for.
        version: an address that always means this very model; the folder of one that is in no store.
        model_id: of MLflow's LoggedModel, "" for a folder.
    """

    model: str
    version: str
    model_id: str = ""


class Service:
    """A model that answers requests.

    Args:
        model: the classifier.
        about: which it is.
        limits: what it takes.
    """

    def __init__(self, model: Model, about: About, limits: Limits) -> None:
        self._model, self._about, self._limits = model, about, limits
        self._begin, self._inside, self._labelled, self._failed = time.monotonic(), 0, 0, 0
        # One thread: two computations at once would each start as many threads as there are cores.
        self._network = ThreadPoolExecutor(1, thread_name_prefix="imgcls-serve")

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/ping", self._ping),
            Route("/health", self._health),
            Route("/invocations", self._guarded(self._invocations), methods=["POST"]),
            Route("/predict", self._guarded(self._predict), methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _http_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    def close(self) -> None:
        """End the thread that computes, after what it is at."""
        self._network.shutdown(wait=False, cancel_futures=True)

    async def _ping(self, _request: Request) -> Response:
        return Response("\n", media_type="application/json")

    async def _health(self, _request: Request) -> Response:
        return _json(
            {
                "status": "ok",
                "model": self._about.model,
                "version": self._about.version,
                "model_id": self._about.model_id,
                "classes": len(self._model.classes),
                "images": self._labelled,
                "images_without_label": self._failed,
                "requests": self._inside,
                "seconds": round(time.monotonic() - self._begin, 1),
            }
        )

    async def _invocations(self, request: Request) -> Response:
        """Images in JSON -> {"predictions": [row, ...]}, as MLflow answers."""
        body, kind = await self._body(request), _content_type(request)
        if kind not in ("application/json", ""):
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"/invocations takes application/json, found {kind}. Send an image as it is to /predict.",
            )
        rows = await self._compute(lambda: self._label(read_images(body, most=self._limits.images)))
        return _json({"predictions": rows})

    async def _predict(self, request: Request) -> Response:
        """An image as it is -> its row, or 400 with the reason."""
        body, kind = await self._body(request), _content_type(request)
        if kind.startswith("multipart/") or kind == "application/json":
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"/predict takes one image as it is and not {kind}: curl --data-binary @photo.jpg -H 'Content-Type: "
                "image/jpeg' …/predict. JSON goes to /invocations.",
            )
        [row] = await self._compute(lambda: self._label([body]))
        if row["error"]:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the image cannot be labelled: {row['error']}.")
        return _json(row)

    def _label(self, cells: list[Any]) -> list[dict[str, Any]]:
        rows = label_images(self._model, cells, batch_size=self._limits.batch_size).rows()
        failed = sum(row["error"] is not None for row in rows)
        self._labelled, self._failed = self._labelled + len(rows) - failed, self._failed + failed
        return rows

    async def _compute(self, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(self._network, work)

    async def _body(self, request: Request, *, keep: bool = True) -> bytes:
        """The whole body, within the limits; one that is not kept is too large unless it is empty."""
        most = self._limits.body_bytes if keep else 0
        given = request.headers.get("content-length", "")
        announced = int(given) if given.isdecimal() else 0
        if announced > most and "expect" in request.headers:
            raise self._too_large()  # the client asks before it sends
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if max(size, announced) <= most:
                        body += chunk
                    elif max(size, announced) > DRAIN_FACTOR * self._limits.body_bytes:
                        break
        except TimeoutError as error:
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {self._limits.body_seconds:g} s."
            ) from error
        if max(size, announced) > most:
            raise self._too_large()
        return bytes(body)

    def _too_large(self) -> Refused:
        return Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request is larger than {self._limits.body_bytes / 2**20:g} MiB. Send fewer or smaller images at once "
            "(encoded images are much smaller than lists of pixels), or start the server with a larger "
            "--max-request-mb.",
        )

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint with a place in the queue, and every error as JSON with a sentence."""

        async def endpoint(request: Request) -> Response:
            if self._inside >= self._limits.requests:
                message = f"{self._inside} requests are waiting already. Try again later."
                with suppress(Refused, ClientDisconnect):
                    await self._body(request, keep=False)
                headers = {"Retry-After": "1", "Connection": "close"}
                return _error(HTTPStatus.SERVICE_UNAVAILABLE, message, headers)
            self._inside += 1
            try:
                return await answer(request)
            except Refused as refused:
                return _error(refused.status, str(refused), {"Connection": "close"})
            except ClientDisconnect:
                return _error(HTTPStatus.BAD_REQUEST, "the client went before its request was there.")
            except Exception:
                _logger.exception("a request to %s failed", request.url.path)
                message = "the server failed on this request; its own output says where."
                return _error(HTTPStatus.INTERNAL_SERVER_ERROR, message)
            finally:
                self._inside -= 1

        return endpoint


async def _http_error(_request: Request, error: HTTPException) -> Response:
    status = HTTPStatus(error.status_code)
    message = f"{status.phrase}: there are GET /health, GET /ping, POST /invocations and POST /predict."
    return _error(status, message, dict(error.headers or {}))


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _error(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Response:
    """In the form of MLflow's own errors."""
    return _json({"error_code": status.name, "message": message}, status, headers)


def _json(value: Any, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value, allow_nan=False), int(status), headers, "application/json")


def listener(host: str, port: int) -> socket.socket:
    """A socket bound to the address, which nobody is let in by yet.

    Raises:
        UserError: the address is not this machine's, is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: an empty or too long part between two dots
        raise UserError(f"--host {host} is no address: {error}. Expected one of this machine's, or 0.0.0.0.") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with _usable(bound, host, port):
        bound.bind(address)
    return bound


@contextmanager
def _usable(bound: socket.socket, host: str, port: int) -> Iterator[None]:
    """Turns the system's refusal of an address into the user's error."""
    try:
        yield
    except OSError as error:
        bound.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give a free port with --port (0 takes any), or end "
            "what listens there."
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's, but the job's own handlers see the signals, and say when to end."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], bool]) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Whether to end, ten times a second."""
        return await super().on_tick(counter) or self._stop()


def serve(service: Service, bound: socket.socket, *, stop: Callable[[], bool], ready: Callable[[], None]) -> None:
    """Answer requests until told to stop; those that are there then have ten seconds.

    Args:
        service: what answers.
        bound: from `listener`.
        stop: asked ten times a second.
        ready: called when connections are let in.

    Raises:
        UserError: another process listens on the address by now.
    """
    host, port = bound.getsockname()[:2]
    with _usable(bound, host, port):
        bound.listen()
    config = uvicorn.Config(
        service.app(),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    ready()
    try:
        _Server(config, stop).run(sockets=[bound])
    finally:
        service.close()
        bound.close()
