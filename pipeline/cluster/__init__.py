"""Ray: how workers, nodes and jobs start. Nothing else imports Ray; pipeline/distributed runs inside the workers."""
