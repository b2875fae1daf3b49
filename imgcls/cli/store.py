"""Commands on the tracking store: ui, upload."""

from pathlib import Path

import click

from imgcls.cli.root import cli


@cli.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port on 127.0.0.1.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def ui(port: int, no_open: bool) -> None:
    """Open the MLflow UI at the runs table."""
    from imgcls.jobs import ui as job

    job.run(port, open_browser=not no_open)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def upload(folder: Path) -> None:
    """Send what a run could not send to its tracking server; FOLDER is named at the end of that run."""
    from imgcls.jobs import upload as job

    click.echo(job.run(folder))
