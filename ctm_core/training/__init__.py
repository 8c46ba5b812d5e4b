"""The training loop and what it trains with: objectives, distances, discriminators, averages."""
