"""Another ExecuTorch: git repositories, source trees, releases."""
