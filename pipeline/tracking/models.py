"""Nets as MLflow models, for `mlflow.pyfunc.load_model(uri).predict(image)`, and versions of them in the registry."""

import logging
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

ROOT = Path(__file__).parents[2]
# Logged with each model, so that it can be loaded where this project is not installed
CODE = ("fcn", "pipeline")
# The packages that pipeline.models.pyfunc needs. MLflow would take 15 seconds to detect them
PACKAGES = ("numpy", "safetensors", "torch")


def log_model(client: MlflowClient, run: Run, name: str, path: Path) -> None:
    """Add the net in a file of models/ to a run; its models that are incomplete, or without files, are removed."""
    for incomplete in _search(client, run):
        client.delete_logged_model(incomplete.model_id)
    model = client.create_logged_model(run.info.experiment_id, name, run.info.run_id)
    with tempfile.TemporaryDirectory(prefix=".model.", dir=path.parent) as scratch:
        folder = Path(scratch, "model")
        save_model(folder, path)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])


def find_model(client: MlflowClient, run: Run) -> LoggedModel | None:
    """Return the newest complete model of a run; None as well if its files are gone."""
    ready = (model for model in _search(client, run) if model.status == LoggedModelStatus.READY)
    return next((model for model in ready if _has_files(client, model)), None)


def _has_files(client: MlflowClient, model: LoggedModel) -> bool:
    return any(file.path == "MLmodel" for file in client.list_logged_model_artifacts(model.model_id))


def _search(client: MlflowClient, run: Run) -> list[LoggedModel]:
    return list(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"))


def save_model(folder: Path, path: Path) -> None:
    """Write a folder in MLflow's layout of a model.

    folder: is created.
    path: a net's file in models/.
    """
    import numpy as np
    from mlflow import pyfunc  # takes seconds to import
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    logging.getLogger(pyfunc.__name__).setLevel(logging.WARNING)  # it reports each check at level INFO
    image = TensorSpec(np.dtype(np.uint8), (-1, -1, 3))
    label = TensorSpec(np.dtype(np.uint8), (-1, -1))
    pyfunc.save_model(
        folder,
        loader_module="pipeline.models.pyfunc",
        data_path=str(path),
        code_paths=[str(ROOT / package) for package in CODE],
        signature=ModelSignature(Schema([image]), Schema([label])),
        input_example=np.zeros((32, 32, 3), np.uint8),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES],
    )


def register_version(
    client: MlflowClient, run: Run, model: LoggedModel, name: str, alias: str | None
) -> ModelVersion:
    """Return this model's version under the registered name `name`.

    It is created if it is missing. The alias is set to it.
    """
    versions = client.search_model_versions(f"name = '{name}'")
    registered = next(
        (candidate for candidate in versions if candidate.source == model.artifact_location), None
    )
    if registered is None:
        if not versions:
            with suppress(MlflowException):  # the name is registered without a version
                client.create_registered_model(name)
        registered = client.create_model_version(
            name, model.artifact_location, run.info.run_id, model_id=model.model_id
        )
    if alias:
        client.set_registered_model_alias(name, alias, registered.version)
    return registered
