"""The Vulkan host: device, memory, pipelines."""
