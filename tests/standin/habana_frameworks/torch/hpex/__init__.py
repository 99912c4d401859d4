"""STAND-IN for Habana's fused kernels."""
