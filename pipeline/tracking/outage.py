"""Outages: which MLflow errors count as outages, and messages about them without passwords."""

import logging
import os
import re
import sys
from contextlib import suppress
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.errors import UserError

# Raised by an unreachable or failing server, a damaged database, a database whose driver is not installed, a full disk
OUTAGE = (MlflowException, OSError, SQLAlchemyError, ImportError, UserError)
logging.getLogger("mlflow.store.db.utils").setLevel(
    logging.CRITICAL
)  # each error with its stack, again and again
TRANSIENT = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def is_down(error: Exception) -> bool:
    """Return whether every other call would fail too; otherwise the server refused this one call."""
    return not isinstance(error, MlflowException) or error.error_code in TRANSIENT


def one_line(error: Exception) -> str:
    """Return the error's message on one line, without passwords and without a database's statement."""
    text = " ".join(str(error).split()).partition(" [SQL: ")[0]
    return without_passwords(re.sub(r"\(raised as a result of Query-invoked autoflush[^)]*\) ", "", text))


def warn(message: str) -> None:
    print(f"warning: tracking: {without_passwords(message)}", file=sys.stderr, flush=True)


def without_passwords(text: str) -> str:
    """Return the text without users and passwords of the addresses in it, nor those of the environment."""
    text = re.sub(r"//\S*@", "//", text)
    text = re.sub(r"(?i)([?&]\w*(?:password|passwd|token|secret)\w*=)[^&\s]*", r"\1***", text)
    passwords = [os.environ.get(name, "") for name in PASSWORDS]
    with suppress(ValueError):  # not an address; MLflow's own error follows
        passwords.append(urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password or "")
    for password in filter(None, passwords):
        text = text.replace(password, "***").replace(unquote(password), "***")
    return text
