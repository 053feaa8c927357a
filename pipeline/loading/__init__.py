"""Which worker sees which pixels at which step."""
