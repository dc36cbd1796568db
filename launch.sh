#!/usr/bin/env bash
# Makes or refreshes the environment in .venv, then hands everything to `lab` (or to pytest).
#   ./launch.sh run experiments/quickstart.py     any `lab` command: run, plan, audit, check, status, report, sample, transfer, batch, ladder, fit, forecast, compare, records, import, export, data, bench
#   ./launch.sh submit EXPERIMENT --to slurm      the same elsewhere (--dry-run tells how), then status, logs, cancel and collect DIR; doctor: what a machine lacks
#   ./launch.sh test [--parity] [PYTEST ARGS]     the tests; --parity adds the comparisons with PyTorch and diffusers
#   ./launch.sh env                               the environment alone
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"  # paths that are given are the caller's own, so its folder stays the current one
venv="$root/.venv"
extras="${LAB_EXTRAS:-icons,dev,notebooks,plan}"  # icons,tpu on a TPU host

# XLA takes its temporary buffers from malloc anew at every step: in pages of 2 MB that costs a fraction of the page faults
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

say() { printf 'launch: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

find_python() {
  local p
  for p in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
    if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then command -v "$p"; return; fi
  done
  die "needs Python 3.11 or newer on PATH (or PYTHON=/path/to/python)"
}

# What the environment was made from: it is remade when the project file, the lock or the folder's place changes.
stamp() { { printf '%s\n' "$1" "$root"; cat "$root/pyproject.toml" "$2"; } | cksum; }

packages() {  # arguments of pip's install
  if [ "$uv" ]; then "$uv" pip install --quiet --python "$venv/bin/python" "$@"
  else "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; fi
}

# Every package of the lock by its hash, then this project and, under the lock's versions, what other extras want.
install() {
  sed -n 's/ *\\$//; /^ /!p' "$lock" > "$venv/versions.txt"
  if [ "${LAB_UNHASHED:-}" ]; then say "LAB_UNHASHED is set: packages are taken by their versions alone"; packages --no-deps --requirement "$venv/versions.txt"
  else packages --no-deps --require-hashes --requirement "$lock" || die "packages of $lock were not installed (above); an index that builds its own wheels has others: LAB_UNHASHED=1 goes by versions alone"; fi
  packages --constraint "$venv/versions.txt" --no-build-isolation --editable "${root}[$extras]"
}

environment() {
  uv=$(command -v uv || true)
  if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then  # absent, or its making was cut off
    local python; python=$(find_python)
    say "making .venv with $("$python" --version) and ${uv:-pip}"
    if [ "$uv" ]; then "$uv" venv --quiet --clear --seed --python "$python" "$venv"; else "$python" -m venv --clear "$venv"; fi
  fi
  lock="$root/locks/py$("$venv/bin/python" -c 'import sys; print("311" if sys.version_info < (3, 12) else "312")').txt"
  local want; want=$(stamp "$extras" "$lock")
  if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$want" ]; then
    say "installing the packages of $lock into .venv (a few minutes the first time)"
    install
    printf '%s' "$want" > "$venv/stamp"
  fi
}

parity() {
  "$venv/bin/python" -c 'import diffusers, mup, torch, transformers' 2>/dev/null && return
  say "installing PyTorch, diffusers, transformers and mup for the comparisons"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0
  # it asks for pandas, seaborn and torchvision to draw with, which nothing here does
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps mup==1.0.0
}

case "${1:-}" in
  "" | -h | --help) sed -n '2,6s/^# //p' "$0"; exit 0 ;;
  env) environment; say "ready: $venv" ;;
  test)
    shift; environment
    marks="not slow and not parity"
    if [ "${1:-}" = --parity ]; then shift; parity; marks="not slow"; fi
    # two at a time: more would want their memory and gain little, as XLA uses every core
    cd "$root"
    exec "$venv/bin/python" -m pytest -q -m "$marks" -n 2 --dist worksteal "$@" ;;
  *) environment; exec "$venv/bin/lab" "$@" ;;
esac
