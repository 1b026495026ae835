"""python -m benchsuite"""

from .cli.main import program

program()
