"""`python -m foldtune` is the `foldtune` command."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
