"""Generated programs: drawn and shrunk by Hypothesis."""
