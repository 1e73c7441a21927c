#!/usr/bin/env bash
# A one-node SLURM of one's own in DIR, without systemd, root or not: up.sh DIR, then export SLURM_CONF=DIR/slurm.conf.
# Needs slurm-wlm and munge. Proof of life is a job, not sinfo.
set -euo pipefail
DIR=$(mkdir -p "$1" && cd "$1" && pwd)
HOST=$(hostname -s)
PORT=$((20000 + $$ % 20000))
chmod 755 "$DIR"
mkdir -p "$DIR"/{munge,log,state,spool}
(umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
munged --force --key-file="$DIR/munge/key" --socket="$DIR/munge/sock" --pid-file="$DIR/munge/pid" \
    --log-file="$DIR/log/munged" --seed-file="$DIR/munge/seed"
cat >"$DIR/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/sock,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld
SlurmdLogFile=$DIR/log/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
KillWait=5
JobRequeue=1
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) State=UNKNOWN
PartitionName=test Nodes=$HOST Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF="$DIR/slurm.conf"
slurmctld -c
slurmd -c
for _ in $(seq 30); do
    timeout 10 sinfo -h -o %t 2>/dev/null | grep -q idle && break
    sleep 0.5
done
timeout 15 srun -n1 true || { tail -n 20 "$DIR"/log/* >&2; exit 1; }
