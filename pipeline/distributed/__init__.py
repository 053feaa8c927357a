"""Training across workers; torch alone."""
