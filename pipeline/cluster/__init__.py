"""Ray: the workers of a run, the nodes of a cluster, and jobs for a cluster. Nothing else imports Ray."""
