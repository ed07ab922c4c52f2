"""Cases as files, for runtimes that are elsewhere: docs/kits.md, docs/contract.md section 3."""
