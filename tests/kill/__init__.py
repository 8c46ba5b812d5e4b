"""A real run, killed thirty times, ends with the bytes of one that nothing happened to."""
