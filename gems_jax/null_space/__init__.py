"""The directions that general text uses: second moments of kernels' inputs, and the constraint that keeps them."""
