"""`python -m ntps`, and what `torchrun -m ntps` starts."""

from ntps.cli.app import main

if __name__ == "__main__":
    main()
