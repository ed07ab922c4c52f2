"""A miniature of ExecuTorch's Vulkan backend."""
