"""The verb `serve`: a logged model behind HTTP until Ctrl-C."""

import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from imgcls.errors import UserError
from imgcls.inference.classifier import SPEC, Classifier
from imgcls.inference.labelling import Model
from imgcls.jobs.signals import Signals
from imgcls.tracking.model import CLASSIFIER, download_classifier
from imgcls.tracking.serving import About, Limits, Service, listener, serve


def run_serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 5001,
    max_request_mb: float = 32,
    max_images: int = 256,
    batch_size: int = 64,
    threads: int | None = None,
) -> None:
    """Serve a model over HTTP; prints its address and how to ask it, and returns never but by a signal.

    Args:
        model: a run id, runs:/…, models:/<name>/<version>, models:/<name>@<alias>, models:/<model id>, or the folder
            of a logged model or of a saved classifier.
        host: the address to listen on; anything else than this machine's own lets others in, with no password.
        port: 0 takes a free one.
        max_request_mb: MiB of a request's body; a larger one is answered with 413.
        max_images: in a request; more are answered with 413.
        batch_size: images that the network computes at once.
        threads: that torch computes with; None leaves that to torch (as many as there are cores, or OMP_NUM_THREADS).

    Raises:
        UserError: there is no such model, or the address cannot be listened on.
        Stopped: by a signal, after the requests that were there have been answered.
    """
    with Signals(ends_process=True, quiet=True) as signals:
        if threads is not None:
            torch.set_num_threads(threads)
        bound = listener(host, port)
        try:
            network, about = open_served(model)
        except BaseException:
            bound.close()
            raise
        limits = Limits(body_bytes=int(max_request_mb * 2**20), images=max_images, batch_size=batch_size)
        with signals.deferred():
            serve(
                Service(network, about, limits),
                bound,
                stop=signals.stop,
                ready=lambda: print(_greeting(about, network, bound), flush=True),
            )
        print("imgcls: the server has ended", file=sys.stderr)
        signals.raise_if_requested()


def open_served(source: str) -> tuple[Model, About]:
    """The model that is to be served, and what to say of it.

    Raises:
        UserError: there is none.
    """
    with _folder(source) as (folder, about):
        return Classifier.load(folder), about


@contextmanager
def _folder(source: str) -> Iterator[tuple[Path, About]]:
    """The folder of a saved classifier: one that is given, one inside a logged model, or a copy of one in the store."""
    given = Path(source)
    for folder in (given, given / "artifacts" / CLASSIFIER):
        if (folder / SPEC).is_file():
            yield folder, About(source, str(given.absolute()))
            return
    if given.is_dir():
        raise UserError(
            f"the folder {source} holds no classifier ({SPEC}); expected the folder of a logged model, a run id, "
            "runs:/<run id> or models:/<name>@<alias>."
        )
    with download_classifier(source) as found:
        yield found.folder, About(source, found.pinned, found.model_id)


def _greeting(about: About, model: Model, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    which = about.model if about.version in (about.model, f"runs:/{about.model}/model") else (
        f"{about.model} ({about.version})"
    )  # fmt: skip
    lines = [f"{which}, {len(model.classes)} classes, at http://{shown}:{port}"]
    if not ipaddress.ip_address(host).is_loopback:
        lines.append("whoever reaches this address may use it: there is no authentication and no encryption")
        shown = "127.0.0.1" if ipaddress.ip_address(host).is_unspecified else shown
    lines += [
        f"try: curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://{shown}:{port}/predict",
        "Ctrl-C ends the server",
    ]
    return "\n".join(lines)
