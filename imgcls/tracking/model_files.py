"""What a logged model is made of, as its store has it: the bytes of its files, and the packages that it asks for."""

from pathlib import Path
from tempfile import TemporaryDirectory

from imgcls.tracking.registry_claim import asking
from imgcls.tracking.store import Store

REQUIREMENTS = "requirements.txt"


def model_bytes(store: Store, model_id: str) -> int:
    """The bytes of all files of a LoggedModel.

    Raises:
        UserError: the store does not say.
    """
    with asking(store, f"listing the files of the model {model_id}"):
        total, folders = 0, list[str | None]([None])
        while folders:
            for entry in store.client.list_logged_model_artifacts(model_id, folders.pop()):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    total += int(entry.file_size or 0)
        return total


def model_requirements(store: Store, model_id: str) -> list[str]:
    """The lines of a LoggedModel's requirements.txt, without comments.

    Raises:
        UserError: there is none, or the store does not give it.
    """
    import mlflow

    with asking(store, f"reading the requirements of the model {model_id}"), TemporaryDirectory() as folder:
        location = store.client.get_logged_model(model_id).artifact_location.rstrip("/")
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{location}/{REQUIREMENTS}", dst_path=folder)
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def digest_of_run(store: Store, run_id: str) -> str | None:
    """The digest of the data set that a run read, deleted runs too; None where it does not say.

    Raises:
        UserError: the store does not answer.
    """
    with asking(store, f"reading the run {run_id}"):
        try:
            tags = store.client.get_run(run_id).data.tags
        except Exception as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        digest: str | None = tags.get("imgcls.data_digest")
        return digest
