"""Data sets as they are published: each module reads one layout and yields samples."""
