"""Checks that start Ray, ask MLflow, and read data and models: half a minute, and longer for a large data set."""

import subprocess
import sys

from pipeline import paths, tracking
from pipeline.cluster import nodes
from pipeline.config import CHAIN
from pipeline.doctor.findings import AdviceError, Checks, Setting
from pipeline.errors import UserError
from pipeline.files import and_more

RAY_PATIENCE_S = 300.0  # on a busy machine; half a minute on another


def gpu(setting: Setting) -> str:
    import torch
    from torch.cuda import nccl

    num_wanted = setting.profile.train.num_workers if setting.profile.train.use_gpu else 0
    if not torch.cuda.is_available():
        if num_wanted and not nodes.cluster_address():
            raise UserError(
                f"torch {torch.__version__} finds no GPU, and train.use_gpu of {setting.name} is true; look at "
                "nvidia-smi, set use_gpu: false, or send the job to a cluster (fcn cluster submit)"
            )
        return "none, and none is needed"
    num_found = torch.cuda.device_count()
    for index in range(num_found):
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            raise UserError(f"GPU {index} does not compute: {str(error).splitlines()[0]}") from None
    if num_found < num_wanted and not nodes.cluster_address():
        raise UserError(
            f"{num_wanted} workers need a GPU each, this machine has {num_found}: lower num_workers"
        )
    has_nccl = torch.distributed.is_nccl_available()
    version = ".".join(map(str, nccl.version())) if has_nccl else "missing"
    return f"{num_found} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}, NCCL {version}"


def ray(setting: Setting) -> str:
    command = [sys.executable, "-m", "pipeline.doctor.ray_start"]
    try:
        done = subprocess.run(
            command, cwd=setting.root, capture_output=True, text=True, timeout=RAY_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"no worker of Ray started within {RAY_PATIENCE_S:.0f} s; its logs are in /tmp/ray/session_latest/logs"
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        raise UserError((errors or lines or ["Ray ended without a word"])[-1])
    return done.stdout.splitlines()[-1]


def mlflow(setting: Setting) -> str:
    try:
        return tracking.describe(setting.name, setting.root)
    except UserError as error:  # training goes on without MLflow
        raise AdviceError(
            f"{error}; a run goes on, and `fcn tracking replay` sends later what MLflow missed"
        ) from None


def data(setting: Setting) -> str:
    from pipeline.shards.read import all_damage

    folders = [setting.root / paths.shards(setting.name, split) for split in setting.profile.data.split_names]
    folders = [folder for folder in folders if folder.is_dir()]
    damage = [line for folder in folders for line in all_damage(folder)]
    if damage:
        raise UserError(f"{and_more(damage, 3)}; run dvc repro -f shard")
    if folders:
        return f"shards of {' and '.join(folder.name for folder in folders)} are whole"
    source = setting.profile.data.source
    for key, path in (("own", source.own), ("local", source.local)):
        if path and not paths.named(path).exists():
            raise UserError(f"data.source.{key}: {paths.named(path).absolute()} is missing")
    return "no shards yet; dvc repro makes them"


def models(setting: Setting) -> str:
    from pipeline.models import checkpoint

    kinds = {"backbone": "backbone"} | dict.fromkeys(CHAIN, "model")
    files = {setting.root / paths.model(setting.name, name): kind for name, kind in kinds.items()}
    found = [path for path in files if path.exists()]
    for path in found:
        checkpoint.load(path, files[path])  # against its sha256
    return ", ".join(path.stem for path in found) + " are whole" if found else "none yet"


def fonts(setting: Setting) -> str:
    from pipeline.report import canvas

    if letters := canvas.missing_letters("".join(setting.profile.data.classes)):
        raise AdviceError(canvas.font_advice(letters))
    return "all letters of the class names"


CHECKS: Checks = {"GPU": gpu, "Ray": ray, "MLflow": mlflow, "data": data, "models": models, "fonts": fonts}
