"""From a request to one dispatch: variants, checks, grid, job."""
