"""From rows to batches of tokens on devices."""
