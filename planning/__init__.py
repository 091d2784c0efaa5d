"""The cost of a training step on devices that are not here: memory, operations, communication, time."""
