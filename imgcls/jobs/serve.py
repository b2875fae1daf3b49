"""The verb `serve`: a logged model behind HTTP until Ctrl-C."""

import ipaddress
import socket
import sys

import torch

from imgcls.jobs.console import Console
from imgcls.jobs.open_model import open_model
from imgcls.jobs.signals import Signals
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
            opened = open_model(model, Console())
        except BaseException:
            bound.close()
            raise
        limits = Limits(body_bytes=int(max_request_mb * 2**20), images=max_images, batch_size=batch_size)
        with signals.deferred():
            serve(
                Service(opened.model, About(model, opened.address, opened.model_id or ""), limits),
                bound,
                stop=signals.stop,
                ready=lambda: print(_greeting(bound), flush=True),
            )
        print("imgcls: the server has ended", file=sys.stderr)
        signals.raise_if_requested()


def _greeting(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    lines = [f"serving at http://{shown}:{port}"]
    if not ipaddress.ip_address(host).is_loopback:
        lines.append("whoever reaches this address may use it: there is no authentication and no encryption")
        shown = "127.0.0.1" if ipaddress.ip_address(host).is_unspecified else shown
    lines += [
        f"try: curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' http://{shown}:{port}/predict",
        "Ctrl-C ends the server",
    ]
    return "\n".join(lines)
