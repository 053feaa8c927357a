"""A node's cache of blocks: ranges of a store's files, kept on the local disk."""
