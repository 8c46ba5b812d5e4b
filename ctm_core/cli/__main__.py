"""``python -m ctm_core.cli``: the command without its console script, as torchrun starts it."""

from ctm_core.cli import main

if __name__ == "__main__":
    main()
