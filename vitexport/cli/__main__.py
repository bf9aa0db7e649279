"""``python -m vitexport.cli``."""

from vitexport.cli import main

if __name__ == "__main__":
    main(prog_name="vitexport")
