"""The referee: judges any implementation of the q4gsw embedding path, stage by stage."""
