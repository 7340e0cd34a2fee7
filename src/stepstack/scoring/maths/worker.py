"""Child process of ``pool.GraderPool``. Never imports torch. A message is a list [grader, gold, answer]; the reply has
the fields of a Grade."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from stepstack.scoring.child_process import serve
from stepstack.scoring.maths.grade import Grade, grade


def reply(message: list[Any]) -> dict[str, Any]:
    """Grade of one message. An exception becomes the reason of a wrong verdict, which the pool counts."""
    grader, gold, answer = message
    try:
        return dataclasses.asdict(grade(grader, gold, answer))
    except Exception as error:  # an exception from hostile input is the verdict of that item
        return dataclasses.asdict(Grade(False, answer, f"error: {type(error).__name__}: {str(error)[:500]}"))


def warm_up() -> None:
    """Import and first use of both graders, which take seconds."""
    grade("math_verify", "\\frac{1}{2}", "0.50")
    grade("orz_legacy", "\\frac{1}{2}", "0.50")


if __name__ == "__main__":
    serve(sys.argv[1:], reply, warm_up)
