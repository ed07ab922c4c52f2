"""What lower_to_vulkan plans, rewrites, and leaves to the CPU."""
