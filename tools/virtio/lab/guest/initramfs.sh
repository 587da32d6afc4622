#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Makes the initramfs that Documentation/admin-guide/virtio-suspend.rst tells of, with the modules
# that DKMS has built, and one more script, initramfs-report. Runs in the build root, in a mount
# namespace of its own: nothing of it stays but the file.
#
# Usage: initramfs.sh DKMS-TREE SOURCE-TREE RELEASE DIRECTORY
set -eux
release=$3 dir=$4

cp -a "/usr/lib/modules/$release" "$dir/modules"
mount --bind "$dir/modules" "/usr/lib/modules/$release"
cp -a /etc "$dir/etc"
mount --bind "$dir/etc" /etc

dkms install virtio-suspend/1.0 -k "$release" --dkmstree "$1" --sourcetree "$2"
# As the guide has it, but for a disk only, and with no more modules than it needs.
echo virtio_suspend >>/etc/initramfs-tools/modules
echo 'softdep virtio_blk pre: virtio_suspend' >/etc/modprobe.d/virtio-suspend.conf
printf '%s\n' virtio_pci virtio_blk >>/etc/initramfs-tools/modules
sed -i 's/^MODULES=.*/MODULES=list/' /etc/initramfs-tools/initramfs.conf
cp "$(dirname "$0")/initramfs-report" /etc/initramfs-tools/scripts/init-premount/report
mkinitramfs -o "$dir/initramfs" "$release"
