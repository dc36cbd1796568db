#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, on loopback and in a folder of its own, for tests.
#   tests/slurm.sh start DIR   starts munged, slurmctld and slurmd; DIR/slurm.conf is what SLURM_CONF is to name
#   tests/slurm.sh stop DIR    ends them
# Wants root, and the packages slurm-wlm and munge (Debian, Ubuntu).
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
dir=$(mkdir -p "$2" && cd "$2" && pwd)
host=$(hostname -s)

wait_for() {  # seconds, command...
  local end=$((SECONDS + $1)); shift
  until "$@" > /dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then echo "slurm.sh: no success of: $*" >&2; tail -n 5 "$dir"/*.log >&2 || true; return 1; fi
    sleep 0.1
  done
}

idle() { sinfo --noheader --format=%T | grep -q idle; }

start() {
  local port=$((20000 + RANDOM % 20000))
  mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
  head -c 1024 /dev/urandom > "$dir/munge/key"
  chmod 755 "$dir/munge"; chmod 400 "$dir/munge/key"
  local socket="$dir/munge/socket"
  munged --force --key-file="$dir/munge/key" --socket="$socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" < /dev/null
  cat > "$dir/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0
ReturnToService=2
KillWait=20
MailProg=/bin/true
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE PreemptMode=REQUEUE
CONF
  export SLURM_CONF="$dir/slurm.conf"
  slurmctld -c
  slurmd -c
  wait_for 30 idle
}

stop() {
  local file pid
  for file in slurmd.pid slurmctld.pid munge/pid; do
    pid=$(cat "$dir/$file" 2> /dev/null || true)
    if [ -n "$pid" ]; then kill "$pid" 2> /dev/null || true; wait_for 30 bash -c "! kill -0 $pid"; fi
  done
}

case "$1" in
  start) start ;;
  stop) stop ;;
  *) echo "slurm.sh: start or stop, and a folder" >&2; exit 2 ;;
esac
