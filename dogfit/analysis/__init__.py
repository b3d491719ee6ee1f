"""What is found about the kernels of a network."""
