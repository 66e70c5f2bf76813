"""`python -m dengine` is the command `dengine`."""

from dengine_cli.start import main

if __name__ == "__main__":
    main()
