#!/usr/bin/env bash
# A real Slurm cluster of two nodes on this one machine, for tests. One at a time on a machine.
#
#   tests/slurm/cluster.sh up      installs what is missing, starts the cluster, waits until both nodes are idle
#   eval "$(tests/slurm/cluster.sh env)"; srun -N2 hostname; sbatch ...
#   tests/slurm/cluster.sh down    ends its jobs and daemons, takes its network down, forgets its state
#
# Needs root on Debian or Ubuntu; no systemd, no cgroups, and changes nothing under /etc. Each node is a slurmd with
# a host name, an /etc/hosts and, where the machine allows it, a network of its own, so that an address that is
# right on one node alone fails as it would on a real cluster. The file system is shared.
set -euo pipefail

STATE=${TMPDIR:-/tmp}/sf-slurm
NET=10.213.64
BRIDGE=sf-slurm0
export SLURM_CONF=$STATE/slurm.conf PATH=$PATH:/usr/sbin:/sbin

die() { echo "error: $*" >&2; exit 1; }

install_packages() {
  type slurmctld slurmd sbatch munged mungekey &>/dev/null && return
  command -v apt-get >/dev/null || die "no Slurm here and no apt-get to install it: wanted Debian or Ubuntu"
  export DEBIAN_FRONTEND=noninteractive
  local policy=/usr/sbin/policy-rc.d made=
  # 101: no package may start its daemons.
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made=$policy; }
  { apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; } \
    &>"$STATE/apt.log" </dev/null || true
  rm -f "$made"
  type slurmctld slurmd sbatch munged mungekey &>/dev/null \
    || { tail -n 5 "$STATE/apt.log" >&2; die "apt-get could not install Slurm"; }
}

# -- network: a bridge that the machine and both nodes hang on -----------------------------------------

network_up() {
  local i
  ip link add $BRIDGE type bridge && ip addr add $NET.1/24 dev $BRIDGE && ip link set $BRIDGE up || return
  for i in 1 2; do
    ip netns add sf-node$i && ip link add sf-veth$i type veth peer name eth0 netns sf-node$i \
      && ip link set sf-veth$i master $BRIDGE up && ip -n sf-node$i addr add $NET.1$i/24 dev eth0 \
      && ip -n sf-node$i link set lo up && ip -n sf-node$i link set eth0 up || return
  done
} 2>/dev/null

network_down() {
  local i
  for i in 1 2; do
    ip link del sf-veth$i || true
    ip netns del sf-node$i || true
  done
  ip link del $BRIDGE || true
} 2>/dev/null

# -- hosts: a name is a UTS namespace, kept by a file; whoever lives in it belongs to that host -----------

make_host() { # name
  touch "$STATE/$1.uts"
  unshare --uts="$STATE/$1.uts" hostname "$1"
}

on_host() { # name, command...
  local enter=(--uts="$STATE/$1.uts")
  [ ! -e "/run/netns/sf-$1" ] || enter+=(--net="/run/netns/sf-$1")
  # shellcheck disable=SC2016
  nsenter "${enter[@]}" unshare --mount sh -c 'mount --bind "$1" /etc/hosts && shift && exec "$@"' sh \
    "$STATE/hosts" "${@:2}"
}

end_host() { # name: ends all that lives there, daemons, steps and what steps have started
  local process again=1
  mountpoint -q "$STATE/$1.uts" || return 0
  while [ $again ]; do
    again=
    for process in /proc/[0-9]*; do
      [ "$process/ns/uts" -ef "$STATE/$1.uts" ] || continue
      kill -KILL "${process#/proc/}" 2>/dev/null || true
      again=1  # it may have started another one
    done
  done
  umount "$STATE/$1.uts"
}

# -- Slurm ------------------------------------------------------------------------------------------------

write_configuration() { # address of the controller, of node 1, of node 2
  printf '%s\n' "127.0.0.1 localhost" "$1 sf-control" "$2 node1" "$3 node2" >"$STATE/hosts"
  # Any device may pass for a GPU, so that requests for GPUs can be tested without one.
  printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$STATE/gres.conf"
  local listen=NoCtldInAddrAny
  # With a network of its own a slurmd may listen everywhere, and srun on this machine must, to be reached.
  [ "$1" != "$2" ] || listen+=,NoInAddrAny
  cat >"$SLURM_CONF" <<END
ClusterName=sf
SlurmctldHost=sf-control($1)
SlurmctldPort=26817
SlurmUser=slurm
# Ids that do not begin at 1 again with the next cluster: folders may be named by them.
FirstJobId=$(($(date +%s) % 50000000 + 1000))
# cred_expire is also how long a requeued job waits before it may start again; the default is 120 s.
AuthType=auth/munge
AuthInfo=socket=$STATE/munge/socket,cred_expire=5
CommunicationParameters=$listen
StateSaveLocation=$STATE/control
SlurmdSpoolDir=$STATE/spool.%n
SlurmctldPidFile=$STATE/control/pid
SlurmdPidFile=$STATE/slurmd.%n.pid
SlurmctldLogFile=$STATE/control/log
SlurmdLogFile=$STATE/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=3600
# A job in "high" pushes one in "low" off: it gets its --signal, and GraceTime seconds.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
# Whatever the machine has: config_overrides.
NodeName=DEFAULT CPUs=4 CoresPerSocket=4 RealMemory=8000 Gres=gpu:2
NodeName=node1 NodeAddr=$2 Port=27001
NodeName=node2 NodeAddr=$3 Port=27002
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF
END
}

start_daemons() {
  local as_munge=(setpriv --reuid munge --regid munge --clear-groups) munge=$STATE/munge node
  install -d -o munge -g munge -m 711 "$munge"
  install -d -o slurm -g slurm "$STATE/control"
  install -d "$STATE"/spool.node{1,2}
  "${as_munge[@]}" mungekey --create --keyfile="$munge/key"
  on_host sf-control "${as_munge[@]}" munged --socket="$munge/socket" --key-file="$munge/key" \
    --pid-file="$munge/pid" --seed-file="$munge/seed" --log-file="$munge/log"
  on_host sf-control slurmctld
  for node in node1 node2; do on_host $node slurmd -N $node; done
}

is_up() {
  local usable='idle|mixed|allocated|completing'  # a * behind it would mean that the node does not answer
  [ "$(timeout 1 sinfo --noheader --Node --partition=main --format=%T | grep -c -x -E $usable)" = 2 ]
} 2>/dev/null

up() {
  [ "$(id -u)" = 0 ] || die "a cluster can be brought up by root alone"
  ! is_up || return 0
  down
  mkdir -p "$STATE"
  chmod 755 "$STATE"
  install_packages
  if network_up; then
    write_configuration $NET.1 $NET.11 $NET.12
  else
    network_down
    echo "no networks of their own can be had here: both nodes are 127.0.0.1" >&2
    write_configuration 127.0.0.1 127.0.0.1 127.0.0.1
  fi
  for host in sf-control node1 node2; do make_host $host; done
  start_daemons
  for _ in $(seq 150); do ! is_up || return 0; sleep 0.2; done
  tail -n 5 "$STATE"/control/log "$STATE"/slurmd.*.log >&2
  die "the nodes did not come up in 30 s; logs are in $STATE"
}

down() {
  local host
  for host in node1 node2 sf-control; do end_host $host; done
  network_down
  rm -rf "$STATE"
}

case ${1:-} in
  up | down) "$1" ;;
  env) is_up || die "no cluster is up: tests/slurm/cluster.sh up"; echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) sed -n 's/^#   //p' "$0"; exit 2 ;;
esac
