"""Everything around the networks: configuration, data, training driver, evaluation, tracking."""
