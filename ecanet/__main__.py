"""``python -m ecanet`` is ``ecanet``."""

from ecanet.cli.main import main

main()
