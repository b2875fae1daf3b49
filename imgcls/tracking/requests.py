"""What clients send to a served model: the images in MLflow's four forms of JSON, or what is wrong with them."""

import json
from http import HTTPStatus
from typing import Any

COLUMN = "image"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
EXAMPLE = '{"inputs": {"image": ["<base64 of a JPEG or PNG>", ...]}}'


class Refused(Exception):
    """A request that is not answered; the message is a sentence for who sent it.

    Attributes:
        status: of HTTP, 4xx or 5xx.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_images(body: bytes, *, most: int) -> list[Any]:
    """The images of a JSON request, as they were sent: whether each is one shows when it is labelled.

    Args:
        body: JSON with one of `dataframe_split`, `dataframe_records`, `instances` and `inputs`, as in MLflow's
            scoring protocol: https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/
        most: more images than this are refused.

    Raises:
        Refused: the body is no such JSON, has no column `image`, no image or too many.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError; RecursionError: 1,000 brackets deep
        raise _wrong(f"the body is not JSON ({type(error).__name__}: {error})") from error
    if not isinstance(request, dict):
        raise _wrong(f"found {_kind(request)}")
    if unknown := set(request) - set(FORMS):
        raise _wrong(f"found the unknown {', '.join(map(repr, sorted(unknown)))}")
    if len(request) != 1:
        raise _wrong(f"found {len(request)} of {', '.join(FORMS)}")
    [(form, value)] = request.items()
    if form == "dataframe_split":
        images = _split(value)
    elif form == "dataframe_records" or (isinstance(value, list) and value and isinstance(value[0], dict)):
        images = _records(form, value)
    elif isinstance(value, dict):
        cells = _column(form, value)
        images = cells if isinstance(cells, list) else [cells]
    elif isinstance(value, list):
        images = value
    else:
        raise _wrong(f"found {_kind(value)} under {form!r}")
    if not images:
        raise _wrong(f"found no image under {form!r}")
    if len(images) > most:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request has {len(images)} images; at most {most} are taken at once. Send several requests, or start "
            "the server with a larger --max-images.",
        )
    return images


def _split(value: Any) -> list[Any]:
    """The column of {"columns": [...], "data": [[...], ...]}."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise _wrong('found a "dataframe_split" without a list "data"')
    columns = value.get("columns")
    if not isinstance(columns, list) or COLUMN not in columns:
        raise _wrong(f'found a "dataframe_split" whose "columns" are {_short(columns)}')
    place = columns.index(COLUMN)
    if not all(isinstance(row, list) and len(row) == len(columns) for row in value["data"]):
        raise _wrong(f'found a row of "dataframe_split" that does not have {len(columns)} cells')
    return [row[place] for row in value["data"]]


def _records(form: str, value: Any) -> list[Any]:
    """The column of [{...}, ...]."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise _wrong(f"found something else than a list of objects under {form!r}")
    return [_column(form, row) for row in value]


def _column(form: str, record: dict[str, Any]) -> Any:
    if COLUMN not in record:
        raise _wrong(f"found under {form!r} no {COLUMN!r} but {_short(list(record))}")
    return record[COLUMN]


def _wrong(found: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"{found}; expected images in a column {COLUMN!r}, such as {EXAMPLE}.")


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), "a number or boolean")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
