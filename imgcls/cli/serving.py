"""Commands that answer with a trained model: serve."""

import click

from imgcls.cli.root import cli


@cli.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; there is no password.")
@click.option("--port", default=5001, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--max-request-mb", default=32.0, show_default=True, type=click.FloatRange(0, 4096, min_open=True),
    help="MiB of a request.",
)  # fmt: skip
@click.option("--max-images", default=256, show_default=True, type=click.IntRange(1), help="Images in a request.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1), help="Images computed at once.")
@click.option("--threads", type=click.IntRange(1), help="Threads that torch computes with.  [default: torch's own]")
def serve(
    model: str,
    host: str,
    port: int,
    max_request_mb: float,
    max_images: int,
    batch_size: int,
    threads: int | None,
) -> None:
    """Answer HTTP requests with MODEL until Ctrl-C.

    MODEL is a run id, runs:/RUN, models:/NAME/VERSION, models:/NAME@ALIAS or a model's folder. POST an image as it is
    to /predict, or JSON as for `mlflow models serve` to /invocations; GET /health.
    """
    from imgcls.jobs.serve import run_serve

    run_serve(
        model,
        host=host,
        port=port,
        max_request_mb=max_request_mb,
        max_images=max_images,
        batch_size=batch_size,
        threads=threads,
    )
