"""MLflow: runs, curves, figures and models. No failure of MLflow stops a stage.

What MLflow should hold is written to disk first, as a `Record`, so whatever a failing server misses is sent later.
"""

import os

# MLflow reads these when it is imported, so they come before all imports below
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's defaults block a call for four minutes if the server is down
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # printed for each run that ends
os.environ.setdefault("PGCONNECT_TIMEOUT", "10")  # PostgreSQL's client waits for minutes by default

from pipeline.tracking.describe import describe as describe
from pipeline.tracking.follow import Follower as Follower
from pipeline.tracking.lookup import download_children as download_children
from pipeline.tracking.lookup import download_metrics as download_metrics
from pipeline.tracking.lookup import register as register
from pipeline.tracking.records import Record as Record
from pipeline.tracking.replay import replay as replay
from pipeline.tracking.tracker import GROUP as GROUP
from pipeline.tracking.tracker import MEMBER as MEMBER
from pipeline.tracking.tracker import Tracker as Tracker
from pipeline.tracking.ui import serve as serve
