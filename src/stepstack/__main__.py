"""python -m stepstack"""

from stepstack.cli.main import main

raise SystemExit(main())
