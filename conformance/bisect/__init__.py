"""From a red case to the stage, size or commit that broke it."""
