"""The patterns there are."""

fusable_patterns = {}
