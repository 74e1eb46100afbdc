"""World-model components for PyTorch, TorchRL and TensorDict."""
