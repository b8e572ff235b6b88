"""`python -m gptrio`: the command line."""

from gptrio.cli import main

if __name__ == "__main__":
    main()
