"""Processes of one run on loopback, for tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(hosts, devices, *argv, **env):
    """Processes of one run on loopback."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), **env}
    if hosts > 1:
        env |= {"LAB_COORDINATOR": f"127.0.0.1:{free_port()}", "LAB_HOSTS": str(hosts)}
    out = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return [subprocess.Popen([sys.executable, *argv], env=env | ({"LAB_HOST": str(i)} if hosts > 1 else {}), **out) for i in range(hosts)]


def end(processes, code=0, timeout=900):
    """What processes print; all must end with `code`."""
    try:
        told = [p.communicate(timeout=timeout) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, err) in zip(processes, told, strict=True):
        assert p.returncode == code, err[-3000:]
    return [out for out, _ in told]
