"""`python -m dcube`: the command line."""

from dcube.cli import main

if __name__ == "__main__":
    main()
