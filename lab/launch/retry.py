"""What is done about a run that ends: the one rule for all back ends. No jax here.

Exit code 0, 2 (bad config or input) and 3 (every trial diverged) are final. 75 (interrupted, state saved) is begun again at no charge, unless this
process was itself asked to stop. Anything else is a crash or a kill: begun again a limited number of times, each after twice the pause.
"""

import signal
import subprocess
import sys
import time

from sharding.exits import FINAL, INTERRUPTED

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # by the signal itself, as while the command still starts: it has lost nothing
PAUSE = 5.0  # seconds before the first new attempt
LONGEST = 300.0


def supervise(argv: list[str], budget: int) -> int:
    """Run a command until its end is final or `budget` crashes are spent; its last exit code, 128 + n where signal n ended it."""
    child, asked, crashes = None, [], 0

    def forward(number, frame):
        asked.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    old = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            child = subprocess.Popen(argv)
            if asked:  # between two attempts
                child.send_signal(asked[-1])
            code = child.wait()
            code = 128 - code if code < 0 else code
            if code in FINAL:
                return code
            if asked:
                return INTERRUPTED if code in STOPPED else code
            crashes += code != INTERRUPTED
            if crashes > budget:
                print(f"lab: exit code {code}, and no more than {budget} new attempts", file=sys.stderr)
                return code
            pause = min(LONGEST, PAUSE * 2 ** max(0, crashes - 1)) if code != INTERRUPTED else PAUSE
            left = "at no charge" if code == INTERRUPTED else f"crash {crashes} of {budget} that are allowed"
            print(f"lab: exit code {code}, {left}; going on in {pause:g} s", file=sys.stderr, flush=True)
            end = time.monotonic() + pause
            while time.monotonic() < end and not asked:
                time.sleep(0.05)
            if asked:
                return INTERRUPTED
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
