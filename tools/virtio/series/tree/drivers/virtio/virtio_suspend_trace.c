// SPDX-License-Identifier: GPL-2.0
/* The trace events of SUSPEND, which are raised by code in Rust. */

#include <linux/virtio.h>

#define CREATE_TRACE_POINTS
#include <trace/events/virtio_suspend.h>
