"""The errors that a user can cause, and how a command ends because of one.

    UserError
    ├── ConfigError          params.yaml, a profile
    ├── DownloadError        a file of a mirror
    ├── ArchiveError         a tar
    ├── DatasetError         photos, labels and lists
    ├── LeakError            training and evaluation share an image
    ├── ShardError           shards and their manifest
    ├── CheckpointError      models and checkpoints
    ├── ResultError          scores and counts
    ├── PhotoError           a photo of `fcn predict` or `fcn serve`
    │   ├── PhotoFormatError
    │   └── PhotoSizeError
    └── ServerError          `fcn serve` itself

Each ends a command with its message and exit code 2. Every other exception is a mistake of this code.
"""

import errno
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake outside this code. The message states what was expected, what came, where, and the remedy."""


class ConfigError(UserError):
    """params.yaml or a profile lacks a value, or has one that is not allowed."""


class DownloadError(UserError):
    """No mirror gives a file that is whole and has its checksum."""


class ArchiveError(UserError):
    """An archive is damaged, too large, or tries to write outside its folder."""


class DatasetError(UserError):
    """A data set on disk lacks a file, or has one that cannot be used."""


class LeakError(UserError):
    """An image is in both the training and the evaluation split."""


class ShardError(UserError):
    """A shard or its manifest is missing, damaged, or of another data set."""


class CheckpointError(UserError):
    """A model or checkpoint file is missing, damaged, or of another network."""


class ResultError(UserError):
    """A run's scores or counts are missing, damaged, or not of this project."""


class PhotoError(UserError):
    """A photo is damaged or cannot be used."""


class PhotoFormatError(PhotoError):
    """A file is not a photo of a supported format."""


class PhotoSizeError(PhotoError):
    """A photo has more pixels than the limit."""


class ServerError(UserError):
    """A server cannot be started with these options."""


# Faults of a path or a disk that any file may have, wherever it is opened
OF_FILES = (errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
USER_MISTAKE = 2  # exit code, as argparse uses it
INTERRUPTED = 130  # exit code, as shells use it for Ctrl-C


def exit_cleanly(command: Callable[[], object]) -> None:
    """Run a command. UserError ends it with its message and exit code 2, Ctrl-C with 130; neither shows a traceback.

    So does a file that this user may not reach, whose name is too long, or for which the disk has no room.
    """
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain as it ends
        sys.exit(0)
    except OSError as error:
        if error.errno not in OF_FILES or error.filename is None:
            raise
        print(f"error: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        sys.exit(USER_MISTAKE)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
