"""What proofs run on: a device, the host, a stream of dispatches."""
