"""Model files for other programs."""
