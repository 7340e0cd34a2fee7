"""Triton decides on import whether kernels are interpreted or compiled, so the interpreted tests have a process of
their own (test_interpreted.py starts it): TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted"""

import triton

collect_ignore = [] if triton.knobs.runtime.interpret else ["interpreted"]
