"""``python -m vitexport.cli``."""

from vitexport.cli import main

main(prog_name="vitexport")
