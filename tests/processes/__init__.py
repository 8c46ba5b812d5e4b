"""Several processes that train one model: same numbers as one, and no way to hang."""
