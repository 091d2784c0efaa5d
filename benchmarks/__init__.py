"""Measurements on this machine: each file, and the package `train_step`, is a program of its own."""
