// SPDX-License-Identifier: GPL-2.0

#include <linux/blkdev.h>
#include <linux/hw_random.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/nospec.h>
#include <linux/pci.h>
#include <linux/rcupdate.h>
#include <linux/scatterlist.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/virtio_config.h>
#include <linux/virtio_features.h>
#include <linux/virtio_ring.h>

#include "virtio.h"

#define CREATE_TRACE_POINTS
#include <trace/events/virtio_suspend.h>

bool rust_virtio_helper_virtio_has_feature(const struct virtio_device *vdev, unsigned int fbit)
{
	/*
	 * Not virtio_has_feature(): it calls BUG() when a driver asks for a
	 * device feature that is missing in its table, and a Rust driver can
	 * ask for any.
	 */
	return fbit < VIRTIO_FEATURES_BITS && __virtio_test_bit(vdev, fbit);
}

void rust_virtio_helper_virtio_clear_feature(struct virtio_device *vdev, unsigned int fbit)
{
	__virtio_clear_bit(vdev, fbit);
}

void rust_virtio_helper_virtio_set_feature(struct virtio_device *vdev, unsigned int fbit)
{
	__virtio_set_bit(vdev, fbit);
}

bool rust_virtio_helper_virtio_offers_feature(struct virtio_device *vdev, unsigned int fbit)
{
	u64 features[VIRTIO_FEATURES_U64S];

	virtio_get_features(vdev, features);
	return fbit < VIRTIO_FEATURES_BITS && virtio_features_test_bit(features, fbit);
}

void rust_virtio_helper_virtio_device_visit_vqs(struct virtio_device *vdev,
						void (*f)(struct virtqueue *vq, void *data),
						void *data)
{
	struct virtqueue *vq;
	unsigned long flags;

	/* In the context of a callback, and with what keeps each of them alive. */
	spin_lock_irqsave(&vdev->vqs_list_lock, flags);
	virtio_device_for_each_vq(vdev, vq)
		f(vq, data);
	spin_unlock_irqrestore(&vdev->vqs_list_lock, flags);
}

bool rust_virtio_helper_virtio_is_disconnected(const struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;

	/* As pci_dev_is_disconnected(), which is the PCI core's own. */
	return parent && dev_is_pci(parent) &&
	       READ_ONCE(to_pci_dev(parent)->error_state) == pci_channel_io_perm_failure;
}

bool rust_virtio_helper_virtio_is_parent_enabled(const struct virtio_device *vdev)
{
	struct device *parent = vdev->dev.parent;

	return !parent || !dev_is_pci(parent) || pci_is_enabled(to_pci_dev(parent));
}

bool rust_virtio_helper_system_is_going_down(void)
{
	/* Not SYSTEM_SUSPEND, which comes last. */
	return system_state >= SYSTEM_HALT && system_state <= SYSTEM_RESTART;
}

/* For who is called back by virtio_config_changed(), which holds the lock. May sleep. */
void rust_virtio_helper_virtio_set_priv(struct virtio_device *vdev, void *priv)
{
	spin_lock_irq(&vdev->config_lock);
	vdev->priv = priv;
	spin_unlock_irq(&vdev->config_lock);
}

/* As virtio_config_core_disable() and virtio_config_core_enable(), which are static. */

void rust_virtio_helper_virtio_config_core_disable(struct virtio_device *vdev)
{
	spin_lock_irq(&vdev->config_lock);
	vdev->config_core_enabled = false;
	spin_unlock_irq(&vdev->config_lock);
}

void rust_virtio_helper_virtio_config_core_enable(struct virtio_device *vdev)
{
	bool pending;

	spin_lock_irq(&vdev->config_lock);
	vdev->config_core_enabled = true;
	pending = vdev->config_change_pending;
	spin_unlock_irq(&vdev->config_lock);
	if (pending)
		virtio_config_changed(vdev);
}

void rust_virtio_helper_device_lock(struct device *dev)
{
	device_lock(dev);
}

bool rust_virtio_helper_device_trylock(struct device *dev)
{
	return device_trylock(dev);
}

void rust_virtio_helper_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

/* What virtio-rng has registered for a device that it is bound to; NULL if that can't be told. */
struct hwrng *rust_virtio_helper_virtio_rng_hwrng(struct virtio_device *vdev)
{
	struct hwrng *rng = vdev->priv;

	/* Its data begin with it, and it refers to them. */
	if (!rng || ksize(rng) < sizeof(*rng) || rng->priv != (unsigned long)rng)
		return NULL;
	return rng->read && rng->cleanup ? rng : NULL;
}

void rust_virtio_helper_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

void rust_virtio_helper_virtio_synchronize_cbs(struct virtio_device *vdev)
{
	virtio_synchronize_cbs(vdev);
}

u16 rust_virtio_helper_vring_avail_idx(const struct virtqueue *vq)
{
	const struct vring *vring = virtqueue_get_vring(vq);

	return virtio16_to_cpu(vq->vdev, READ_ONCE(vring->avail->idx));
}

u16 rust_virtio_helper_vring_used_idx(const struct virtqueue *vq)
{
	const struct vring *vring = virtqueue_get_vring(vq);

	return virtio16_to_cpu(vq->vdev, READ_ONCE(vring->used->idx));
}

void rust_virtio_helper_init_delayed_work(struct delayed_work *work, work_func_t func)
{
	INIT_DELAYED_WORK(work, func);
}

/* Work that waits for work as above: it has a lock class of its own. */
void rust_virtio_helper_init_waiting_work(struct delayed_work *work, work_func_t func)
{
	INIT_DELAYED_WORK(work, func);
}

struct workqueue_struct *rust_virtio_helper_alloc_rescued_workqueue(const char *name)
{
	/*
	 * As with create_workqueue(), what is done may wait for work that has
	 * no rescuer: a driver whose device is recovered flushes its own.
	 */
	return alloc_workqueue("%s", __WQ_LEGACY | WQ_MEM_RECLAIM | WQ_UNBOUND, 0, name);
}

bool rust_virtio_helper_queue_delayed_work(struct workqueue_struct *wq, struct delayed_work *work,
					   unsigned long delay)
{
	return queue_delayed_work(wq, work, delay);
}

bool rust_virtio_helper_mod_delayed_work(struct workqueue_struct *wq, struct delayed_work *work,
					 unsigned long delay)
{
	return mod_delayed_work(wq, work, delay);
}

/* Looks for polled requests that have ended, on behalf of those who made them. */
void rust_virtio_helper_blk_mq_poll_queues(struct request_queue *q)
{
	struct blk_mq_hw_ctx *hctx;
	unsigned long i;

	/*
	 * As blk_rq_poll(): a queue without requests may have been frozen by
	 * somebody who takes down what is polled here.  With the reference it
	 * can't get there, and one that was quiesced before may be there.
	 */
	if (!q->mq_ops->poll || !percpu_ref_tryget(&q->q_usage_counter))
		return;
	if (!blk_queue_quiesced(q))
		queue_for_each_hw_ctx(q, hctx, i)
			if (hctx->type == HCTX_TYPE_POLL)
				q->mq_ops->poll(hctx, NULL);
	percpu_ref_put(&q->q_usage_counter);
}

unsigned int rust_virtio_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void rust_virtio_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

void rust_virtio_helper_reinit_completion(struct completion *x)
{
	unsigned long flags;

	/*
	 * Not reinit_completion(), whose store is not atomic with a waiter's
	 * decrement: a Rust caller can't be asked to exclude waiters.
	 */
	raw_spin_lock_irqsave(&x->wait.lock, flags);
	x->done = 0;
	raw_spin_unlock_irqrestore(&x->wait.lock, flags);
}

void rust_virtio_helper_synchronize_rcu_tasks(void)
{
	/* A macro where no task is ever preempted. */
	synchronize_rcu_tasks();
}

void rust_virtio_helper_local_bh_disable(void)
{
	local_bh_disable();
}

void rust_virtio_helper_local_bh_enable(void)
{
	local_bh_enable();
}

bool rust_virtio_helper_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

size_t rust_virtio_helper_array_index_nospec(size_t index, size_t size)
{
	return array_index_nospec(index, size);
}

void *rust_virtio_helper_page_address(struct page *page)
{
	return page_address(page);
}

void rust_virtio_helper_sg_unmark_end(struct scatterlist *sg)
{
	sg_unmark_end(sg);
}

void rust_virtio_helper_ida_init(struct ida *ida)
{
	ida_init(ida);
}

void rust_virtio_helper_rq_set_special_payload(struct request *rq, void *payload,
					       unsigned int len)
{
	bvec_set_virt(&rq->special_vec, payload, len);
	rq->rq_flags |= RQF_SPECIAL_PAYLOAD;
}

void rust_virtio_helper_rq_free_special_payload(struct request *rq)
{
	kfree(bvec_virt(&rq->special_vec));
	rq->rq_flags &= ~RQF_SPECIAL_PAYLOAD;
}

bool rust_virtio_helper_blk_mq_add_to_batch(struct request *rq, struct io_comp_batch *iob,
					    bool is_error,
					    void (*complete)(struct io_comp_batch *))
{
	return blk_mq_add_to_batch(rq, iob, is_error, complete);
}

bool rust_virtio_helper_blk_should_fake_timeout(struct request_queue *q)
{
	return blk_should_fake_timeout(q);
}

unsigned short rust_virtio_helper_blk_rq_nr_discard_segments(struct request *rq)
{
	return blk_rq_nr_discard_segments(rq);
}

struct queue_limits rust_virtio_helper_queue_limits_start_update(struct request_queue *q)
{
	return queue_limits_start_update(q);
}

static bool has_tags(struct blk_mq_tags *tags)
{
	/* Who waits for a tag may have been woken, and not have it yet. */
	return tags && (sbitmap_any_bit_set(&tags->bitmap_tags.sb) ||
			atomic_read(&tags->bitmap_tags.ws_active));
}

/* Whether a queue has a request, be it on its way to the driver or with it. May sleep. */
bool rust_virtio_helper_blk_mq_has_requests(struct request_queue *q)
{
	struct blk_mq_hw_ctx *hctx;
	bool found = false;
	unsigned long i;

	/* Keeps the tags of the scheduler. */
	mutex_lock(&q->elevator_lock);
	queue_for_each_hw_ctx(q, hctx, i)
		found = found || has_tags(hctx->tags) || has_tags(hctx->sched_tags);
	mutex_unlock(&q->elevator_lock);
	return found;
}

sector_t rust_virtio_helper_get_capacity(struct gendisk *disk)
{
	return get_capacity(disk);
}

struct gendisk *rust_virtio_helper_dev_to_disk(struct device *dev)
{
	return dev_to_disk(dev);
}

void rust_virtio_helper_hd_geometry_set(struct hd_geometry *geo, unsigned char heads,
					unsigned char sectors, unsigned short cylinders)
{
	geo->heads = heads;
	geo->sectors = sectors;
	geo->cylinders = cylinders;
}

void rust_virtio_helper_trace_virtio_suspend_transition(struct virtio_device *vdev, u8 from,
							u8 to, int error)
{
	trace_virtio_suspend_transition(vdev, from, to, error);
}

void rust_virtio_helper_trace_virtio_suspend_status(struct virtio_device *vdev, bool write,
						    u8 status)
{
	trace_virtio_suspend_status(vdev, write, status);
}
