"""Training across workers: the code inside a worker, which needs torch alone; pipeline/cluster starts the workers."""
