"""From a tuned model to answers."""
