/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C wrappers of the macros and static inline functions that crate `virtio`
 * needs. Upstream these would be rust/helpers/{virtio,completion,nospec}.c and
 * need no header, because the kernel runs bindgen over the C files themselves.
 *
 * The prefix is not the kernel's, because all of them are exported, and a later
 * kernel may have a helper of the same name.
 */
#ifndef _RUST_HELPERS_VIRTIO_H
#define _RUST_HELPERS_VIRTIO_H

#include <linux/blk-mq.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/hdreg.h>
#include <linux/hw_random.h>
#include <linux/idr.h>
#include <linux/netdevice.h>
#include <linux/virtio.h>
#include <linux/workqueue.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_host.h>

bool rust_virtio_helper_virtio_has_feature(const struct virtio_device *vdev, unsigned int fbit);
void rust_virtio_helper_virtio_clear_feature(struct virtio_device *vdev, unsigned int fbit);
void rust_virtio_helper_device_lock(struct device *dev);
bool rust_virtio_helper_device_trylock(struct device *dev);
void rust_virtio_helper_device_unlock(struct device *dev);

void rust_virtio_helper_virtio_set_feature(struct virtio_device *vdev, unsigned int fbit);
bool rust_virtio_helper_virtio_offers_feature(struct virtio_device *vdev, unsigned int fbit);
void rust_virtio_helper_virtio_device_visit_vqs(struct virtio_device *vdev,
						void (*f)(struct virtqueue *vq, void *data),
						void *data);
bool rust_virtio_helper_virtio_is_disconnected(const struct virtio_device *vdev);
bool rust_virtio_helper_virtio_is_parent_enabled(const struct virtio_device *vdev);
bool rust_virtio_helper_system_is_going_down(void);
void rust_virtio_helper_virtio_config_core_disable(struct virtio_device *vdev);
void rust_virtio_helper_virtio_config_core_enable(struct virtio_device *vdev);
void rust_virtio_helper_virtio_set_priv(struct virtio_device *vdev, void *priv);
struct hwrng *rust_virtio_helper_virtio_rng_hwrng(struct virtio_device *vdev);
void rust_virtio_helper_virtio_device_ready(struct virtio_device *vdev);
void rust_virtio_helper_virtio_synchronize_cbs(struct virtio_device *vdev);
u16 rust_virtio_helper_vring_avail_idx(const struct virtqueue *vq);
u16 rust_virtio_helper_vring_used_idx(const struct virtqueue *vq);

bool rust_virtio_helper_virtio_pm_keeps_state(const struct virtio_device *vdev);
bool rust_virtio_helper_virtio_pm_can_exempt(const struct virtio_device *vdev);
bool rust_virtio_helper_virtio_pm_is_suspend_to_idle(void);
void rust_virtio_helper_virtio_pm_exempt(struct virtio_device *vdev, bool exempt);
void rust_virtio_helper_virtio_pm_join_domain(struct virtio_device *vdev,
					      struct dev_pm_domain *domain);
void rust_virtio_helper_virtio_pm_leave_domain(struct virtio_device *vdev,
					       struct dev_pm_domain *domain);
bool rust_virtio_helper_virtio_pm_is_in_domain(const struct virtio_device *vdev,
					       const struct dev_pm_domain *domain);
int rust_virtio_helper_virtio_pm_freeze(struct virtio_device *vdev);
int rust_virtio_helper_virtio_pm_restore(struct virtio_device *vdev);

void rust_virtio_helper_init_delayed_work(struct delayed_work *work, work_func_t func);
void rust_virtio_helper_init_waiting_work(struct delayed_work *work, work_func_t func);
struct workqueue_struct *rust_virtio_helper_alloc_rescued_workqueue(const char *name);
bool rust_virtio_helper_queue_delayed_work(struct workqueue_struct *wq, struct delayed_work *work,
					   unsigned long delay);
bool rust_virtio_helper_mod_delayed_work(struct workqueue_struct *wq, struct delayed_work *work,
					 unsigned long delay);
void rust_virtio_helper_blk_mq_poll_queues(struct request_queue *q);
unsigned int rust_virtio_helper_memalloc_noio_save(void);
void rust_virtio_helper_memalloc_noio_restore(unsigned int flags);
void rust_virtio_helper_reinit_completion(struct completion *x);
void rust_virtio_helper_synchronize_rcu_tasks(void);
void rust_virtio_helper_local_bh_disable(void);
void rust_virtio_helper_local_bh_enable(void);
bool rust_virtio_helper_fatal_signal_pending(void);
struct net_device *rust_virtio_helper_to_net_dev(struct device *dev);
bool rust_virtio_helper_netif_running(const struct net_device *dev);
bool rust_virtio_helper_netif_device_present(const struct net_device *dev);
bool rust_virtio_helper_netdev_is_registered(const struct net_device *dev);
void rust_virtio_helper_netdev_set_present(struct net_device *dev, bool present);
bool rust_virtio_helper_netdev_has_zero_copy(struct net_device *dev);
unsigned int rust_virtio_helper_netdev_tx_queues(const struct net_device *dev);
void rust_virtio_helper_netdev_tx_lock(struct net_device *dev, unsigned int index);
void rust_virtio_helper_netdev_tx_unlock(struct net_device *dev, unsigned int index);
bool rust_virtio_helper_netdev_tx_stop(struct net_device *dev, unsigned int index);
void rust_virtio_helper_netdev_tx_wake(struct net_device *dev, unsigned int index);
void rust_virtio_helper_netdev_tx_excuse(struct net_device *dev, unsigned int index);
unsigned int rust_virtio_helper_skb_get_queue_mapping(const struct sk_buff *skb);

typedef netdev_tx_t rust_virtio_ndo_start_xmit(struct sk_buff *skb, struct net_device *dev);
typedef int rust_virtio_ndo_xdp_xmit(struct net_device *dev, int n, struct xdp_frame **frames,
				     u32 flags);
typedef int rust_virtio_ndo_bpf(struct net_device *dev, struct netdev_bpf *bpf);
typedef int rust_virtio_ndo_set_features(struct net_device *dev, netdev_features_t features);

const struct net_device_ops *rust_virtio_helper_netdev_ops(const struct net_device *dev);
void rust_virtio_helper_netdev_set_ops(struct net_device *dev, const struct net_device_ops *ops);
void rust_virtio_helper_net_device_ops_replace_config(struct net_device_ops *const ops,
						      rust_virtio_ndo_set_features *set_features,
						      rust_virtio_ndo_bpf *bpf);
void rust_virtio_helper_net_device_ops_replace_xmit(struct net_device_ops *const ops,
						    rust_virtio_ndo_start_xmit *start_xmit,
						    rust_virtio_ndo_xdp_xmit *xdp_xmit);
bool rust_virtio_helper_net_device_ops_has(const struct net_device_ops *ops,
					   rust_virtio_ndo_set_features *set_features);
netdev_tx_t rust_virtio_helper_ndo_start_xmit(const struct net_device_ops *ops,
					      struct sk_buff *skb, struct net_device *dev);
int rust_virtio_helper_ndo_xdp_xmit(const struct net_device_ops *ops, struct net_device *dev,
				    int n, struct xdp_frame **frames, u32 flags);
void rust_virtio_helper_ndo_set_rx_mode(const struct net_device_ops *ops, struct net_device *dev);
bool rust_virtio_helper_netdev_bpf_detaches(const struct netdev_bpf *bpf);
void rust_virtio_helper_netdev_bpf_refuse(struct netdev_bpf *bpf);
int rust_virtio_helper_ndo_xdp_detach(const struct net_device_ops *ops, struct net_device *dev);
netdev_features_t rust_virtio_helper_netdev_features(const struct net_device *dev);
void rust_virtio_helper_netdev_set_features(struct net_device *dev, netdev_features_t features);
int rust_virtio_helper_vlan_for_each(struct net_device *dev,
				     int (*action)(struct net_device *dev, int vid, void *arg),
				     void *arg);
bool rust_virtio_helper_vlan_dev_is_8021q(const struct net_device *dev);
void rust_virtio_helper_ndo_vlan_rx_kill_vid(const struct net_device_ops *ops,
					     struct net_device *dev, u16 vid);

typedef enum scsi_qc_status rust_virtio_scsi_queuecommand(struct Scsi_Host *shost,
							  struct scsi_cmnd *cmd);
typedef int rust_virtio_scsi_eh(struct scsi_cmnd *cmd);

struct Scsi_Host *rust_virtio_helper_dev_to_scsi_host(struct device *dev);
void rust_virtio_helper_scsi_template_replace(struct scsi_host_template *const copy,
					      const struct scsi_host_template *own,
					      rust_virtio_scsi_queuecommand *queuecommand,
					      rust_virtio_scsi_eh *abort,
					      rust_virtio_scsi_eh *reset);
bool rust_virtio_helper_scsi_host_take(struct Scsi_Host *shost,
				       const struct scsi_host_template *by);
void rust_virtio_helper_scsi_host_put_back(struct Scsi_Host *shost,
					   const struct scsi_host_template *own);
void rust_virtio_helper_scsi_host_set_offline(struct Scsi_Host *shost);
void rust_virtio_helper_scsi_host_wait_scanned(struct Scsi_Host *shost);
const struct scsi_host_template *rust_virtio_helper_scsi_template(const struct Scsi_Host *shost);
void rust_virtio_helper_scsi_host_poll(struct Scsi_Host *shost,
				       const struct scsi_host_template *own, unsigned int queue);
struct Scsi_Host *rust_virtio_helper_scsi_cmnd_host(const struct scsi_cmnd *cmd);
struct request_queue *rust_virtio_helper_scsi_cmnd_queue(const struct scsi_cmnd *cmd);
bool rust_virtio_helper_scsi_cmnd_is_request(const struct scsi_cmnd *cmd);
enum scsi_qc_status rust_virtio_helper_scsi_host_queue(struct Scsi_Host *shost,
						       const struct scsi_host_template *own,
						       struct scsi_cmnd *cmd);
int rust_virtio_helper_scsi_cmnd_abort(const struct scsi_host_template *own, struct scsi_cmnd *cmd);
int rust_virtio_helper_scsi_cmnd_reset(const struct scsi_host_template *own, struct scsi_cmnd *cmd);

size_t rust_virtio_helper_array_index_nospec(size_t index, size_t size);

void *rust_virtio_helper_page_address(struct page *page);
void rust_virtio_helper_sg_unmark_end(struct scatterlist *sg);

void rust_virtio_helper_ida_init(struct ida *ida);

void rust_virtio_helper_rq_set_special_payload(struct request *rq, void *payload,
					       unsigned int len);
void rust_virtio_helper_rq_free_special_payload(struct request *rq);
bool rust_virtio_helper_blk_mq_add_to_batch(struct request *rq, struct io_comp_batch *iob,
					    bool is_error,
					    void (*complete)(struct io_comp_batch *));
bool rust_virtio_helper_blk_should_fake_timeout(struct request_queue *q);
unsigned short rust_virtio_helper_blk_rq_nr_discard_segments(struct request *rq);
struct queue_limits rust_virtio_helper_queue_limits_start_update(struct request_queue *q);
sector_t rust_virtio_helper_get_capacity(struct gendisk *disk);
bool rust_virtio_helper_blk_mq_has_requests(struct request_queue *q);
struct gendisk *rust_virtio_helper_dev_to_disk(struct device *dev);
void rust_virtio_helper_hd_geometry_set(struct hd_geometry *geo, unsigned char heads,
					unsigned char sectors, unsigned short cylinders);

/* For bindgen, which does not evaluate what these macros stand for; Kbuild takes the prefix off. */
static const size_t RUST_VIRTIO_CONST_HELPER_ARCH_DMA_MINALIGN = ARCH_DMA_MINALIGN;
static const blk_features_t RUST_VIRTIO_CONST_HELPER_BLK_FEAT_WRITE_CACHE = BLK_FEAT_WRITE_CACHE;

void rust_virtio_helper_trace_virtio_suspend_transition(struct virtio_device *vdev, u8 from,
							u8 to, int error);
void rust_virtio_helper_trace_virtio_suspend_status(struct virtio_device *vdev, bool write,
						    u8 status);

#endif /* _RUST_HELPERS_VIRTIO_H */
