"""Model files: written, read, verified, run."""
