"""Numbers of the reference implementations; see data/README.md for what every tensor means."""
