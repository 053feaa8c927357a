"""The small net that `fcn init` falls back on, with its recipe."""

from pipeline.config import Profile

# As profiles/own.yaml ships, which is not read because users edit it. Of the data and the run a plan has its own
PROFILE = Profile.model_validate(
    {
        "data": {
            "source": {"own": "../my-data"},
            "allow_partial": False,
            "classes": ["background", "foreground"],
            "splits": {"train": {"include": ["own/train"]}, "val": {"include": ["own/val"]}},
        },
        "shards": {"samples_per_shard": 100, "seed": 0},
        "model": {
            "backbone": "vgg16",
            "padding": "tight",
            "width": 0.125,
            "batch_norm": True,
            "fc6_kernel": 3,
            "pixels": "torchvision",
        },
        "backbone": {"seed": 1337},
        "train": {
            "num_workers": 2,
            "batch_size": 2,
            "loss": "mean",
            "optimizer": {"name": "adamw", "weight_decay": 1.0e-4},
            "schedule": "poly",
            "keep": "last",
            "seed": 1337,
        },
        "run": {"log_every": 10, "checkpoint_every": 50},
        "nets": {
            "fcn32s": {"lr": 1.0e-3, "iterations": 200},
            "fcn16s": {"lr": 5.0e-4, "iterations": 100},
            "fcn8s": {"lr": 5.0e-4, "iterations": 100},
        },
        "evaluate": {"num_figures": 6},
    }
)
