"""Nets as MLflow's models: `mlflow.pyfunc.load_model(uri).predict(image)`, and a registry of names for them."""

import logging
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

CODE = Path(__file__).parent.parent.parent
# What pipeline.models.pyfunc runs: it goes with the model, which so can be loaded where this project is not
SHIPPED = (
    "fcn/__init__.py",
    "fcn/backbones/alexnet.py",
    "fcn/backbones/features.py",
    "fcn/geometry.py",
    "fcn/backbones/googlenet.py",
    "fcn/backbones/mobilenet.py",
    "fcn/model.py",
    "fcn/pixels.py",
    "fcn/backbones/resnet.py",
    "fcn/backbones/vgg.py",
    "pipeline/__init__.py",
    "pipeline/models/checkpoint.py",
    "pipeline/errors.py",
    "pipeline/models/model_file.py",
    "pipeline/models/pyfunc.py",
)
PACKAGES = (
    "numpy",
    "safetensors",
    "torch",
)  # given, because finding them out takes MLflow a quarter of a minute


def log_model(client: MlflowClient, run: Run, name: str, path: Path) -> None:
    """Adds the net in a file of models/ to a run that has none."""
    info = run.info
    for broken_off in _logged(client, run):
        client.delete_logged_model(broken_off.model_id)
    model = client.create_logged_model(info.experiment_id, name, info.run_id)
    with tempfile.TemporaryDirectory(prefix=".model.", dir=path.parent) as scratch:
        save(Path(scratch), path)
        client.log_model_artifacts(model.model_id, str(Path(scratch, "model")))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(info.run_id, [LoggedModelOutput(model.model_id, step=0)])


def logged_model(client: MlflowClient, run: Run) -> LoggedModel | None:
    """The newest model of a run that is there whole."""
    return next((model for model in _logged(client, run) if model.status == LoggedModelStatus.READY), None)


def _logged(client: MlflowClient, run: Run) -> list[LoggedModel]:
    return list(client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"))


def save(folder: Path, path: Path) -> None:
    """Writes folder/model, as MLflow lays out a model, from a file of models/."""
    import numpy as np
    from mlflow import pyfunc  # takes seconds to import
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    logging.getLogger(pyfunc.__name__).setLevel(logging.WARNING)  # it tells of each thing it checks
    for name in SHIPPED:
        (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CODE / name, folder / "code" / name)
    (folder / "net.pt").symlink_to(path)  # copied once, below: VGG-16 is half a gigabyte
    image = TensorSpec(np.dtype(np.uint8), (-1, -1, 3))
    label = TensorSpec(np.dtype(np.uint8), (-1, -1))
    pyfunc.save_model(
        folder / "model",
        loader_module="pipeline.models.pyfunc",
        data_path=str(folder / "net.pt"),
        code_paths=[str(folder / "code" / layer) for layer in ("fcn", "pipeline")],
        signature=ModelSignature(Schema([image]), Schema([label])),
        input_example=np.zeros((32, 32, 3), np.uint8),
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in PACKAGES],
    )


def register(
    client: MlflowClient, run: Run, model: LoggedModel, name: str, alias: str | None
) -> ModelVersion:
    """The version of the registered model `name` that is this model: there already, or new. It gets the alias."""
    versions = client.search_model_versions(f"name = '{name}'")
    found = next((one for one in versions if one.source == model.artifact_location), None)
    if found is None:
        if not versions:
            with suppress(MlflowException):  # it is there, without a version
                client.create_registered_model(name)
        found = client.create_model_version(
            name, model.artifact_location, run.info.run_id, model_id=model.model_id
        )
    if alias:
        client.set_registered_model_alias(name, alias, found.version)
    return found
