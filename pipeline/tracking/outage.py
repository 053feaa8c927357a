"""What counts as a tracking server's failure, and how it is said: in a warning that shows no password."""

import os
import re
import sys
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

# What an unreachable or failing server, a damaged database, or one whose driver is not installed raises
OUTAGE = (MlflowException, OSError, SQLAlchemyError, ImportError)
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def is_down(error: Exception) -> bool:
    """Whether nothing else will get through either; else the server is there, and refuses this one thing."""
    return not isinstance(error, MlflowException) or error.error_code in PASSING


def in_words(error: Exception) -> str:
    """The error on one line, without a password."""
    return without_secrets(" ".join(str(error).split()))


def warn(message: str) -> None:
    print(f"warning: tracking: {without_secrets(message)}", file=sys.stderr, flush=True)


def without_secrets(text: str) -> str:
    """The text without user and password of an address in it, and without those of the environment."""
    text = re.sub(r"//\S*@", "//", text)
    given = [os.environ.get(name, "") for name in PASSWORDS]
    with suppress(ValueError):  # of what is no address, which MLflow says
        given.append(urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password or "")
    for secret in (form for one in given if one for form in (one, unquote(one))):
        text = text.replace(secret, "***")
    return text
