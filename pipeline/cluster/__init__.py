"""Ray: workers, nodes and jobs."""
