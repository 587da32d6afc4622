/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Input of bindgen: the headers whose items the kernel's own `bindings` crate
 * lacks. Upstream, these lines would join rust/bindings/bindings_helper.h.
 *
 * Sorted alphabetically.
 */

#include <linux/hw_random.h>
#include <linux/input.h>
#include <linux/input/mt.h>
#include <linux/netdevice.h>
#include <linux/reboot.h>
#include <linux/rtnetlink.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_features.h>
#include <linux/virtio_ring.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_host.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_ids.h>
#include <uapi/linux/virtio_input.h>
#include <uapi/linux/virtio_net.h>
#include <uapi/linux/virtio_ring.h>

#include "../helpers/compat.h"
#include "../helpers/virtio.h"
