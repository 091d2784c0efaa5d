"""From events to rows: cores, histories, splits, negatives, checks."""
