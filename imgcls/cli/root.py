"""The command group that all verbs hang on."""

import click

from imgcls import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imgcls")
@click.option("--debug", is_flag=True, help="Show the traceback of an error; stands anywhere.")
def cli(debug: bool) -> None:
    """Train image classifiers as tracked, comparable MLflow runs.

    Runs are kept in MLFLOW_TRACKING_URI, or in ./mlflow.db where that is not set.
    """
    assert not debug  # main takes it off the line, wherever it stands; here it is for --help
