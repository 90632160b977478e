"""One file per question; figures as JSON, pictures as PNG, findings in ``LOG.md``."""
