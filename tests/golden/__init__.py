"""Numbers of the official implementations; see data/README.md for what every tensor means."""
