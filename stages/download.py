"""Bring the profile's images to data/<profile>/raw: drawn, unpacked from published archives, or copied.

Writes the digest of their content to data/<profile>/raw.json, which the next stages depend on.
"""

from pipeline import config
from pipeline.datasets import raw
from pipeline.surroundings import run_command


def main() -> None:
    profile_name, profile = config.load()
    raw.bring(profile_name, profile.data)


if __name__ == "__main__":
    run_command(main)
