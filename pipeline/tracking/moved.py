"""Corrects a project's own database of MLflow after the project was moved or copied.

MLflow records where files are as absolute addresses, and has no call that changes them.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import ResultError
from pipeline.tracking.outage import warn

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
# The columns of MLflow's tables that hold addresses of files
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
TIMEOUT_S = 30.0  # for another process that writes to the database


def correct_addresses(root: Path) -> None:
    """Let the addresses in root/mlflow.db lead to root/mlartifacts, and report it; nothing if they do.

    Files that were left behind where the project was stay in use, with a warning.

    root: the project's folder, absolute.

    Raises ResultError if the database cannot be read or written.
    """
    database = root / DATABASE
    if not database.exists():
        return
    here = f"{(root / ARTIFACTS).as_uri()}/"
    try:
        with closing(sqlite3.connect(database, timeout=TIMEOUT_S)) as connection, connection:
            for base in _other_bases(connection, here):
                there = Path(unquote(urlsplit(base).path))
                if there.is_dir() and not (root / ARTIFACTS).is_dir():
                    warn(f"MLflow's files are still in {there}, and new ones go there; move it to {root}")
                    continue
                for table, column in ADDRESSES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (here, len(base) + 1, len(base), base),
                    )
                warn(
                    f"this project was in {there.parent}: its MLflow runs and models now lead to {root / ARTIFACTS}"
                )
    except sqlite3.Error as error:
        raise ResultError(f"{database} cannot be read: {error}") from error


def _other_bases(connection: sqlite3.Connection, here: str) -> list[str]:
    """Return the addresses of other mlartifacts/ folders that experiments of this project have their files in."""
    is_table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'experiments'"
    if not connection.execute(is_table).fetchone():
        return []
    locations = connection.execute(
        "SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'"
    )
    found = {location.rpartition(f"/{ARTIFACTS}/") for (location,) in locations}
    return sorted({f"{project}/{ARTIFACTS}/" for project, folder, _ in found if folder} - {here})
