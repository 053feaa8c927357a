"""MLflow: runs, curves, figures and models. Nothing outside this folder imports it, and no failure of it stops a stage.

What is to be logged is a `Record` on disk first, so that what a dead server misses follows later.
"""

import os

# Read by MLflow when it is imported, which is why they stand above all that imports it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# By default a dead server holds a call up for four minutes; what it misses is on disk and can wait
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault(
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
)  # with each run that ends, in each replay
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # of PostgreSQL's client, which else waits for minutes

from pipeline.tracking.follower import Follower as Follower
from pipeline.tracking.lookup import download_metrics as download_metrics
from pipeline.tracking.lookup import register as register
from pipeline.tracking.replay import replay as replay
from pipeline.tracking.tracker import Tracker as Tracker
from pipeline.tracking.tracker import git_tags as git_tags
