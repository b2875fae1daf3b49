"""The verb `upload`: send what a run could not send while its tracking server was down."""

from pathlib import Path

from imgcls.tracking.run import upload


def run(folder: Path) -> str:
    """Send what waits in the folder; returns the line to print."""
    run_id, sent = upload(folder)
    return f"sent {sent} writes; the run {run_id} is complete\nnext: imgcls ui"
