#!/usr/bin/env bash
# Ends what up.sh DIR began, by its pid files.
set -uo pipefail
for pid in "$1"/slurmd.pid "$1"/slurmctld.pid "$1"/munge/pid; do
    [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null
done
sleep 2 # the ports need as long to be free
