"""``python -m pricepix``: the command line."""

from pricepix.cli import main

if __name__ == "__main__":
    main(prog_name="python -m pricepix")
