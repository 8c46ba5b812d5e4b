"""Networks, feature extractors, weight files: this project's and those of others."""
