"""The program of a forward pass, read and run again: which kernels are applied to which inputs."""
