"""The zoo of real models: what each holds, and a check of a lowered model against the contract."""
