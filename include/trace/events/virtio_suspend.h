/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_suspend

#if !defined(_TRACE_VIRTIO_SUSPEND_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_VIRTIO_SUSPEND_H

#include <linux/tracepoint.h>
#include <linux/virtio.h>

/* The values of `State` in rust/kernel/virtio/suspend/protocol.rs. */
#define show_virtio_suspend_state(state)	\
	__print_symbolic(state,			\
		{ 0, "running" },		\
		{ 1, "suspending" },		\
		{ 2, "suspended" },		\
		{ 3, "resuming" },		\
		{ 4, "failed" })

#define show_virtio_status(status)				\
	__print_flags(status, "|",				\
		{ 0x01, "ACKNOWLEDGE" },			\
		{ 0x02, "DRIVER" },				\
		{ 0x04, "DRIVER_OK" },				\
		{ 0x08, "FEATURES_OK" },			\
		{ 0x10, "SUSPEND" },				\
		{ 0x40, "DEVICE_NEEDS_RESET" },			\
		{ 0x80, "FAILED" })

/* A device changed its suspend state; error is 0 or why the last request failed. */
TRACE_EVENT(virtio_suspend_transition,
	    TP_PROTO(struct virtio_device *vdev, u8 from, u8 to, int error),
	    TP_ARGS(vdev, from, to, error),
	    TP_STRUCT__entry(__string(dev, dev_name(&vdev->dev))
			     __field(u8, from)
			     __field(u8, to)
			     __field(int, error)),
	    TP_fast_assign(__assign_str(dev);
			   __entry->from = from;
			   __entry->to = to;
			   __entry->error = error;),
	    TP_printk("%s %s -> %s error=%d", __get_str(dev),
		      show_virtio_suspend_state(__entry->from),
		      show_virtio_suspend_state(__entry->to), __entry->error)
);

/* The suspend engine read or wrote the device status field. */
TRACE_EVENT(virtio_suspend_status,
	    TP_PROTO(struct virtio_device *vdev, bool write, u8 status),
	    TP_ARGS(vdev, write, status),
	    TP_STRUCT__entry(__string(dev, dev_name(&vdev->dev))
			     __field(bool, write)
			     __field(u8, status)),
	    TP_fast_assign(__assign_str(dev);
			   __entry->write = write;
			   __entry->status = status;),
	    TP_printk("%s %s 0x%02x %s", __get_str(dev), __entry->write ? "write" : "read",
		      __entry->status, show_virtio_status(__entry->status))
);

#endif /* _TRACE_VIRTIO_SUSPEND_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
