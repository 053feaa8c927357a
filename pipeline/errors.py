"""What a user can cause, and how a command ends because of it."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake outside this code: the message says what was expected, what came, where, and the remedy."""


class ConfigError(UserError):
    """params.yaml or a profile does not say what the pipeline needs."""


class DownloadError(UserError):
    """A file could not be fetched whole and verified."""


class ArchiveError(UserError):
    """An archive is damaged, too large, or tries to write outside its folder."""


class DatasetError(UserError):
    """A data set on disk lacks a file, or holds one that cannot be used."""


class LeakError(UserError):
    """An image is both trained and evaluated on."""


class ShardError(UserError):
    """A shard or its manifest is missing, damaged or of another data set."""


class CheckpointError(UserError):
    """A model or checkpoint file is missing, damaged or of another network."""


class ResultError(UserError):
    """A run's scores or counts are missing, damaged or not of this project."""


class PhotoError(UserError):
    """A photo is damaged, or not one at all."""


class PhotoFormatError(PhotoError):
    """A photo, or what is called one, is of a format that is not read here."""


class PhotoSizeError(PhotoError):
    """A photo has more pixels than are read."""


class ServerError(UserError):
    """A server cannot be started as it was asked for."""


USER_MISTAKE = 2  # exit code, as argparse uses it
INTERRUPTED = 130  # exit code, as shells use it for Ctrl-C


def exit_cleanly(command: Callable[[], object]) -> None:
    """Runs a command; a user's mistake ends it with one message and exit code 2, Ctrl-C with 130, never a traceback."""
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except BrokenPipeError:  # whoever read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
        sys.exit(0)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
