"""The search as one fused kernel for an accelerator."""
