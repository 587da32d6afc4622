// SPDX-License-Identifier: GPL-2.0

#include <linux/if_vlan.h>
#include <linux/netdevice.h>
#include <net/netdev_lock.h>
#include <net/xdp_sock_drv.h>

#include "virtio.h"

struct net_device *rust_virtio_helper_to_net_dev(struct device *dev)
{
	return to_net_dev(dev);
}

bool rust_virtio_helper_netif_running(const struct net_device *dev)
{
	return netif_running(dev);
}

bool rust_virtio_helper_netif_device_present(const struct net_device *dev)
{
	return netif_device_present(dev);
}

bool rust_virtio_helper_netdev_is_registered(const struct net_device *dev)
{
	return READ_ONCE(dev->reg_state) == NETREG_REGISTERED;
}

void rust_virtio_helper_netdev_set_present(struct net_device *dev, bool present)
{
	/*
	 * Not netif_device_detach() and netif_device_attach(): they stop and
	 * wake the transmit queues.
	 */
	if (present) {
		set_bit(__LINK_STATE_PRESENT, &dev->state);
		return;
	}
	/*
	 * The watchdog looks at the transmit queues of an interface that was
	 * present when it began: they must not be stopped meanwhile.
	 */
	spin_lock_bh(&dev->tx_global_lock);
	clear_bit(__LINK_STATE_PRESENT, &dev->state);
	spin_unlock_bh(&dev->tx_global_lock);
}

bool rust_virtio_helper_netdev_has_zero_copy(struct net_device *dev)
{
	unsigned int count = max(dev->num_rx_queues, dev->num_tx_queues);
	struct xsk_buff_pool *pool;
	unsigned int i;

	for (i = 0; i < count; i++) {
		pool = xsk_get_pool_from_qid(dev, i);
		/* A socket that copies has a pool, too, which the driver does not know. */
		if (pool && pool->dma_pages_cnt)
			return true;
	}
	return false;
}

/* Transmit queues. */

unsigned int rust_virtio_helper_netdev_tx_queues(const struct net_device *dev)
{
	return dev->num_tx_queues;
}

void rust_virtio_helper_netdev_tx_lock(struct net_device *dev, unsigned int index)
{
	__netif_tx_lock_bh(netdev_get_tx_queue(dev, index));
}

void rust_virtio_helper_netdev_tx_unlock(struct net_device *dev, unsigned int index)
{
	__netif_tx_unlock_bh(netdev_get_tx_queue(dev, index));
}

bool rust_virtio_helper_netdev_tx_stop(struct net_device *dev, unsigned int index)
{
	/* Returns whether that has changed anything. */
	return !test_and_set_bit(__QUEUE_STATE_DRV_XOFF, &netdev_get_tx_queue(dev, index)->state);
}

void rust_virtio_helper_netdev_tx_wake(struct net_device *dev, unsigned int index)
{
	netif_tx_wake_queue(netdev_get_tx_queue(dev, index));
}

void rust_virtio_helper_netdev_tx_excuse(struct net_device *dev, unsigned int index)
{
	/* Not netif_trans_update(), which is for the first queue. */
	WRITE_ONCE(netdev_get_tx_queue(dev, index)->trans_start, jiffies);
}

unsigned int rust_virtio_helper_skb_get_queue_mapping(const struct sk_buff *skb)
{
	return skb_get_queue_mapping(skb);
}

/* Operations. */

const struct net_device_ops *rust_virtio_helper_netdev_ops(const struct net_device *dev)
{
	/* Whoever sees the pointer sees what was written before it, not only behind it. */
	return smp_load_acquire(&dev->netdev_ops);
}

void rust_virtio_helper_netdev_set_ops(struct net_device *dev, const struct net_device_ops *ops)
{
	/* Pairs with the above, and with the address dependency of the network stack. */
	smp_store_release(&dev->netdev_ops, ops);
}

void rust_virtio_helper_net_device_ops_replace_config(struct net_device_ops *const ops,
						      rust_virtio_ndo_set_features *set_features,
						      rust_virtio_ndo_bpf *bpf)
{
	/* An interface without it can do all that it is asked for. */
	ops->ndo_set_features = set_features;
	/* The network stack looks whether there is any. */
	if (ops->ndo_bpf)
		ops->ndo_bpf = bpf;
}

void rust_virtio_helper_net_device_ops_replace_xmit(struct net_device_ops *const ops,
						    rust_virtio_ndo_start_xmit *start_xmit,
						    rust_virtio_ndo_xdp_xmit *xdp_xmit)
{
	ops->ndo_start_xmit = start_xmit;
	if (ops->ndo_xdp_xmit)
		ops->ndo_xdp_xmit = xdp_xmit;
}

bool rust_virtio_helper_net_device_ops_has(const struct net_device_ops *ops,
					   rust_virtio_ndo_set_features *set_features)
{
	return ops->ndo_set_features == set_features;
}

netdev_tx_t rust_virtio_helper_ndo_start_xmit(const struct net_device_ops *ops,
					      struct sk_buff *skb, struct net_device *dev)
{
	return ops->ndo_start_xmit(skb, dev);
}

int rust_virtio_helper_ndo_xdp_xmit(const struct net_device_ops *ops, struct net_device *dev,
				    int n, struct xdp_frame **frames, u32 flags)
{
	return ops->ndo_xdp_xmit(dev, n, frames, flags);
}

void rust_virtio_helper_ndo_set_rx_mode(const struct net_device_ops *ops, struct net_device *dev)
{
	if (!ops->ndo_set_rx_mode)
		return;
	netif_addr_lock_bh(dev);
	ops->ndo_set_rx_mode(dev);
	netif_addr_unlock_bh(dev);
}

/* XDP. */

bool rust_virtio_helper_netdev_bpf_detaches(const struct netdev_bpf *bpf)
{
	return bpf->command == XDP_SETUP_PROG && !bpf->prog;
}

void rust_virtio_helper_netdev_bpf_refuse(struct netdev_bpf *bpf)
{
	if (bpf->command == XDP_SETUP_PROG)
		NL_SET_ERR_MSG(bpf->extack, "The device is suspended");
}

int rust_virtio_helper_ndo_xdp_detach(const struct net_device_ops *ops, struct net_device *dev)
{
	struct netdev_bpf bpf = { .command = XDP_SETUP_PROG };

	return ops->ndo_bpf ? ops->ndo_bpf(dev, &bpf) : 0;
}

/* Features. */

netdev_features_t rust_virtio_helper_netdev_features(const struct net_device *dev)
{
	return dev->features;
}

void rust_virtio_helper_netdev_set_features(struct net_device *dev, netdev_features_t features)
{
	dev->features = features;
}

/* VLANs. */

int rust_virtio_helper_vlan_for_each(struct net_device *dev,
				     int (*action)(struct net_device *dev, int vid, void *arg),
				     void *arg)
{
	return vlan_for_each(dev, action, arg);
}

bool rust_virtio_helper_vlan_dev_is_8021q(const struct net_device *dev)
{
	return vlan_dev_vlan_proto(dev) == htons(ETH_P_8021Q);
}

void rust_virtio_helper_ndo_vlan_rx_kill_vid(const struct net_device_ops *ops,
					     struct net_device *dev, u16 vid)
{
	if (dev->features & NETIF_F_HW_VLAN_CTAG_FILTER)
		ops->ndo_vlan_rx_kill_vid(dev, htons(ETH_P_8021Q), vid);
}
