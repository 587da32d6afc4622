// SPDX-License-Identifier: GPL-2.0

#include <linux/netdevice.h>
#include <net/netdev_lock.h>

#include "virtio.h"

struct net_device *rust_virtio_helper_to_net_dev(struct device *dev)
{
	return to_net_dev(dev);
}

bool rust_virtio_helper_netif_running(const struct net_device *dev)
{
	return netif_running(dev);
}

void rust_virtio_helper_netdev_set_present(struct net_device *dev, bool present)
{
	/*
	 * Not netif_device_detach() and netif_device_attach(): they stop and
	 * wake the transmit queues, which here the driver goes on to do.
	 */
	if (present)
		set_bit(__LINK_STATE_PRESENT, &dev->state);
	else
		clear_bit(__LINK_STATE_PRESENT, &dev->state);
}

void rust_virtio_helper_netdev_mark_down(struct net_device *dev)
{
	/* What closing it does after ndo_stop(), see netif_set_up(). */
	clear_bit(__LINK_STATE_START, &dev->state);
	dev->flags &= ~IFF_UP;
	netdev_lock(dev);
	dev->up = false;
	netdev_unlock(dev);
	netdev_state_change(dev);
}

/* As netif_freeze_queues() and netif_unfreeze_queues(), which are static. */

void rust_virtio_helper_netdev_freeze_queues(struct net_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->num_tx_queues; i++) {
		struct netdev_queue *txq = netdev_get_tx_queue(dev, i);

		__netif_tx_lock_bh(txq);
		set_bit(__QUEUE_STATE_FROZEN, &txq->state);
		__netif_tx_unlock_bh(txq);
	}
}

void rust_virtio_helper_netdev_unfreeze_queues(struct net_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->num_tx_queues; i++) {
		struct netdev_queue *txq = netdev_get_tx_queue(dev, i);

		clear_bit(__QUEUE_STATE_FROZEN, &txq->state);
		netif_schedule_queue(txq);
	}
}

int rust_virtio_helper_ndo_open(struct net_device *dev)
{
	return dev->netdev_ops->ndo_open ? dev->netdev_ops->ndo_open(dev) : 0;
}

void rust_virtio_helper_ndo_stop(struct net_device *dev)
{
	if (dev->netdev_ops->ndo_stop)
		dev->netdev_ops->ndo_stop(dev);
}

void rust_virtio_helper_ndo_set_rx_mode(struct net_device *dev)
{
	netif_addr_lock_bh(dev);
	if (dev->netdev_ops->ndo_set_rx_mode)
		dev->netdev_ops->ndo_set_rx_mode(dev);
	netif_addr_unlock_bh(dev);
}
