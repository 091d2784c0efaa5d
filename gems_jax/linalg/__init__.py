"""Linear algebra on kernels and stacks of them: orthonormal columns, bases, projection, which axes make a matrix."""
