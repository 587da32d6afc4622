#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Does in a guest what Documentation/admin-guide/virtio-suspend.rst has an operator do: installs the
# modules that DKMS has built, and suspends a disk that the kernel's own driver runs.
#
# Usage: install.sh DKMS-TREE SOURCE-TREE
set -eu
dkms="--dkmstree $1 --sourcetree $2"

# The guest's root is for reading only.
modprobe overlay
for dir in /usr/lib/modules /var/lib; do
	mkdir -p "/run/rw$dir/upper" "/run/rw$dir/work"
	mount -t overlay overlay -o \
		"lowerdir=$dir,upperdir=/run/rw$dir/upper,workdir=/run/rw$dir/work" "$dir"
done

set -x
# shellcheck disable=SC2086 # options
dkms install virtio-suspend/1.0 $dkms
modprobe virtio_suspend
modprobe virtio_blk
set +x
for dir in /sys/bus/virtio/devices/virtio*; do
	[ -d "$dir/block" ] || continue
	echo "revision: $(cat "$dir/suspend/revision")"
	echo suspend >"$dir/suspend/request"
	echo "state: $(cat "$dir/suspend/state")"
	echo resume >"$dir/suspend/request"
	echo "state: $(cat "$dir/suspend/state")"
done
set -x
rmmod virtio_blk virtio_suspend
# shellcheck disable=SC2086 # options
dkms uninstall virtio-suspend/1.0 $dkms
! modinfo virtio_suspend
