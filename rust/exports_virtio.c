// SPDX-License-Identifier: GPL-2.0
/*
 * Exports the Rust symbols of crate `virtio`, and its C helpers, to the drivers
 * that link to it, as rust/exports.c does for crate `kernel`. Kbuild writes the
 * header, with an EXPORT_SYMBOL_GPL() for each symbol.
 */

#include <linux/export.h>

#include "exports_virtio_generated.h"
