"""tracing: see the modules."""
