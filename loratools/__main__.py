"""`python -m loratools`."""

from loratools.cli.main import main

if __name__ == "__main__":
    main(prog_name="loratools")
