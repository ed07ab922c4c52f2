"""A shader proven for every size: SPIR-V executed symbolically, its obligations discharged by z3. docs/proofs.md."""
