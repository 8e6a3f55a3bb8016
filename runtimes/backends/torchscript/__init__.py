"""TorchScript files through torch's interpreter."""
