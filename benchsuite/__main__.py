"""python -m benchsuite"""

from .cli import main

raise SystemExit(main())
