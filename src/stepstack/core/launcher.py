"""accelerate's launcher as `stepstack launch` starts it: `python -m stepstack.core.launcher`, then accelerate's words.

It differs in how it ends. SIGTERM goes to the training processes, which save and end, and it waits for them. It ends
them too when the one that started it is gone. Among several machines the head's leaves last. In place of accelerate's
and torchrun's tracebacks, which show nothing of the training, it has one line; and none after an error that the
training process itself has said in one line.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import DistError
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.elastic.utils.store import synchronize
from torch.distributed.launcher import api as torchrun

from stepstack.core.parent import end_with_parent

USERS_ERROR = 2  # exit status of a training process that has said in one line what the user can mend
# Seconds that the processes beside one that failed have to end: they cannot go on, and have nothing to save.
SECONDS_AFTER_FAILURE = 20
LOUD = ("agent.server.api", "agent.server.local_elastic_agent", "multiprocessing.api", "multiprocessing.errors")


class Agent(LocalElasticAgent):
    """torchrun's agent of a machine, but for its end.

    torchrun's agents wait for each other on a store that the head's process holds, and the head may be the first to
    leave: another that still asks the store then shows a traceback at the end of a run that ended well.
    """

    def _exit_barrier(self) -> None:
        """Wait until the training processes of all machines have ended; the head leaves last."""
        group: Any = self._worker_group  # whose numbers torch types as None, which they are before the start
        self._in_exit_barrier = True
        place = group.group_rank, group.group_world_size
        try:
            synchronize(self._store, b"", *place, key_prefix="stepstack/ended/", timeout=self._exit_barrier_timeout)
        except DistError as error:
            _say(f"this machine is done, another did not say that it is ({str(error).splitlines()[0]})")
        finally:
            self._in_exit_barrier = False


def main(words: Sequence[str]) -> int:
    """Run the training processes of this machine until the last has ended; exit status 0, or that of the first that
    failed."""
    signal.signal(signal.SIGTERM, _forward)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to the training processes too
    end_with_parent()
    for name in LOUD:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SECONDS_AFTER_FAILURE)
    torchrun.LocalElasticAgent = Agent  # type: ignore[misc]
    args = launch_command_parser().parse_args(words)
    args.signals_to_handle = "SIGQUIT"  # torchrun's, which would end processes that are saving
    try:
        launch_command(args)
    except subprocess.CalledProcessError as error:
        return _failed({0: error.returncode})
    except ChildFailedError as error:
        return _failed({rank: failure.exitcode for rank, failure in error.failures.items()})
    except ConnectionError:
        _say(f"port {args.main_process_port} of this machine is taken: give launch.port another number")
        return USERS_ERROR
    except (DistError, RendezvousError) as error:
        _say(
            f"no connection to the launchers of the other machines, {args.main_process_ip}:{args.main_process_port} is "
            f"where they meet ({str(error).splitlines()[0]}): give the same command on all machines"
        )
        return 1
    return 0


def _forward(number: int, frame: object) -> None:
    """The training processes get the signal, and this one waits for them; while there are none it ends."""
    children = psutil.Process().children()
    if not children:
        raise SystemExit(128 + number)
    for child in children:
        try:
            child.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # it has just ended, which is what the signal is for


def _failed(codes: Mapping[int, int]) -> int:
    """The exit status for those of the processes that failed, by rank; said, unless one has said it itself."""
    if USERS_ERROR in codes.values():
        return USERS_ERROR
    # Beside one that failed, torchrun ends the others by SIGTERM.
    codes = {rank: code for rank, code in sorted(codes.items()) if code != -signal.SIGTERM} or codes
    for rank, code in codes.items():
        who = f"training process {rank} on {socket.gethostname()}"
        if code < 0:
            again = "the same command on all machines goes on from the last checkpoint"
            _say(f"{who} was ended by {signal.Signals(-code).name}; {again}")
        else:
            _say(f"{who} failed with exit status {code}; what it said stands above")
    code = next(iter(codes.values()))
    return 128 - code if code < 0 else code


def _say(text: str) -> None:
    print(f"stepstack launch: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
