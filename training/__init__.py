"""From logs to a bundle: sources, prepare, train, evaluate, export."""
