"""The running service, measured: `scripts/bench serve` prints the figures as Markdown tables."""
