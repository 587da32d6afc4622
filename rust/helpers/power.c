// SPDX-License-Identifier: GPL-2.0

#include <linux/device.h>
#include <linux/pci.h>
#include <linux/pm_domain.h>
#include <linux/string.h>
#include <linux/suspend.h>
#include <linux/virtio.h>

#include "virtio.h"

/* The function of a device, if virtio_pci is its driver. */
static struct pci_dev *function_of(const struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;

	if (!parent || !dev_is_pci(parent) || !parent->driver ||
	    strcmp(parent->driver->name, "virtio-pci"))
		return NULL;
	return to_pci_dev(parent);
}

/*
 * Whether the transport leaves a device alone when the system suspends, because
 * its function keeps its state in D3hot: as vp_supports_pm_no_reset(), which is
 * static.
 */
bool rust_virtio_helper_virtio_pm_keeps_state(const struct virtio_device *vdev)
{
	struct pci_dev *pdev = function_of(vdev);
	u16 pmcsr;

	if (!pdev || !pdev->pm_cap)
		return false;
	pci_read_config_word(pdev, pdev->pm_cap + PCI_PM_CTRL, &pmcsr);
	return !PCI_POSSIBLE_ERROR(pmcsr) && (pmcsr & PCI_PM_CTRL_NO_SOFT_RESET);
}

/*
 * Whether the function can be left out of a suspend to idle, at full power: there
 * is no bridge above it, which would have to stay so, too (PCI PM 1.2, table 6-1).
 */
bool rust_virtio_helper_virtio_pm_can_exempt(const struct virtio_device *vdev)
{
	struct pci_dev *pdev = function_of(vdev);

	return pdev && pci_is_root_bus(pdev->bus) && !pdev->dev.power.syscore;
}

bool rust_virtio_helper_virtio_pm_is_suspend_to_idle(void)
{
	return pm_suspend_target_state == PM_SUSPEND_TO_IDLE;
}

/*
 * Has the PM core leave the function out of the suspend that is under way, or
 * no longer. To be called by the device's own callbacks: the PM core looks at
 * the flag of a parent when its children have been suspended, and again before
 * they are resumed. Who writes a flag of the same byte at that time, which is
 * for a child of the function, holds this lock.
 */
void rust_virtio_helper_virtio_pm_exempt(struct virtio_device *vdev, bool exempt)
{
	struct device *parent = vdev->dev.parent;

	spin_lock_irq(&parent->power.lock);
	dev_pm_syscore_device(parent, exempt);
	spin_unlock_irq(&parent->power.lock);
}

/* With the device lock held, and the driver about to be bound. */
void rust_virtio_helper_virtio_pm_join_domain(struct virtio_device *vdev,
					      struct dev_pm_domain *domain)
{
	if (!vdev->dev.pm_domain)
		dev_pm_domain_set(&vdev->dev, domain);
}

/* With the device lock held. */
void rust_virtio_helper_virtio_pm_leave_domain(struct virtio_device *vdev,
					       struct dev_pm_domain *domain)
{
	if (vdev->dev.pm_domain == domain)
		dev_pm_domain_set(&vdev->dev, NULL);
}

bool rust_virtio_helper_virtio_pm_is_in_domain(const struct virtio_device *vdev,
					       const struct dev_pm_domain *domain)
{
	return vdev->dev.pm_domain == domain;
}

/* What a transport does that resets its devices for a sleep. */

int rust_virtio_helper_virtio_pm_freeze(struct virtio_device *vdev)
{
#ifdef CONFIG_PM_SLEEP
	return virtio_device_freeze(vdev);
#else
	return -EOPNOTSUPP;
#endif
}

int rust_virtio_helper_virtio_pm_restore(struct virtio_device *vdev)
{
#ifdef CONFIG_PM_SLEEP
	return virtio_device_restore(vdev);
#else
	return -EOPNOTSUPP;
#endif
}
