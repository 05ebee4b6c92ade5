#!/bin/bash
# The first process of a node: gives it mounts of its own and waits; when it is killed, the node's
# processes and mounts go with it. What the node changes of /etc, /opt and /var lies in the state
# directory's `changed`; the machine's own stay as they are.
#   init.sh NAME STATE PARTS
set -eu
# Before /proc is the node's own: the process as the machine numbers it. `read` is of this shell.
read -r pid _ < /proc/self/stat
name=$1
hostname "$name"
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/state /run/parts /run/netns /run/lock
mount --bind "$2/$name" /run/state
mount --bind "$3" /run/parts
for dir in etc opt var; do
  mkdir -p "/run/state/changed/$dir" "/run/state/work/$dir"
  mount -t overlay -o "lowerdir=/$dir,upperdir=/run/state/changed/$dir,workdir=/run/state/work/$dir" \
    "node-$dir" "/$dir"
done
# What holds overlays itself can't be one.
for dir in containerd kubelet; do
  mkdir -p "/run/state/$dir" "/var/lib/$dir"
  mount --bind "/run/state/$dir" "/var/lib/$dir"
done
mount -t proc proc /proc
# The namespace's own /sys/class/net; the cgroups stay the machine's.
mkdir /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing || true
mount -t debugfs debugfs /sys/kernel/debug || true
# The namespace's own: forwarding, and netfilter for what a bridge forwards.
for setting in ipv4/ip_forward ipv6/conf/all/forwarding \
  bridge/bridge-nf-call-iptables bridge/bridge-nf-call-ip6tables; do
  [ ! -e "/proc/sys/net/$setting" ] || echo 1 > "/proc/sys/net/$setting"
done
# The kernel's own, which kubelet wants so: it reads files that say so, and the kernel stays.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=/run/sysctl/${setting%=*}
  mkdir -p "${file%/*}"
  echo "${setting#*=}" > "$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done
# Containers that ask for it see mounts that come later.
mount --make-rshared /
echo "$pid" > /run/state/pid.new
mv /run/state/pid.new /run/state/pid
sleep infinity &
wait
