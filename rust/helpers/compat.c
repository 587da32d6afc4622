// SPDX-License-Identifier: GPL-2.0

#include <linux/irqflags.h>

#include "compat.h"

unsigned long rust_virtio_helper_local_irq_save(void)
{
	unsigned long flags;

	local_irq_save(flags);
	return flags;
}

void rust_virtio_helper_local_irq_restore(unsigned long flags)
{
	local_irq_restore(flags);
}
