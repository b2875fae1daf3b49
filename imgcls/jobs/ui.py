"""The verb `ui`: MLflow's pages on this machine, opened at the runs table."""

import os
import sys
import webbrowser

from imgcls.jobs.signals import Signals
from imgcls.tracking import ui


def run(port: int, *, open_browser: bool) -> None:
    """Serve the tracking store until Ctrl-C, or where it is a server already, only say where to look."""
    with Signals(ends_process=True), ui.server(port) as (base, process):
        experiment = ui.experiment_id(base)
        link = ui.runs_link(base, experiment, view=ui.save_view(base, experiment))
        print(link, flush=True)
        if open_browser and _has_desktop():
            webbrowser.open(link)
        if process is None:
            return
        print("Ctrl-C ends the server", flush=True)
        process.wait()


def _has_desktop() -> bool:
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
