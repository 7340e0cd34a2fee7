"""python -m stepstack"""

from stepstack.cli import main

raise SystemExit(main())
