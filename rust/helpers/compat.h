/* SPDX-License-Identifier: GPL-2.0 */
/* What rust/kernel/virtio/compat.rs needs in C, for older series of the kernel. */
#ifndef _RUST_HELPERS_COMPAT_H
#define _RUST_HELPERS_COMPAT_H

unsigned long rust_virtio_helper_local_irq_save(void);
void rust_virtio_helper_local_irq_restore(unsigned long flags);

#endif /* _RUST_HELPERS_COMPAT_H */
