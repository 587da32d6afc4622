// SPDX-License-Identifier: GPL-2.0

#include <linux/mutex.h>
#include <linux/string.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_host.h>

#include "virtio.h"

/* Of scsi_mod nothing is called here: it need not be loaded. */

struct Scsi_Host *rust_virtio_helper_dev_to_scsi_host(struct device *dev)
{
	return container_of(dev, struct Scsi_Host, shost_gendev);
}

/* Makes a copy of a template, with some of its operations replaced. */
void rust_virtio_helper_scsi_template_replace(struct scsi_host_template *const copy,
					      const struct scsi_host_template *own,
					      rust_virtio_scsi_queuecommand *queuecommand,
					      rust_virtio_scsi_eh *abort,
					      rust_virtio_scsi_eh *reset)
{
	struct scsi_host_template by;

	memcpy(&by, own, sizeof(by));
	by.queuecommand = queuecommand;
	/* The SCSI midlayer looks whether there is any. */
	if (by.eh_abort_handler)
		by.eh_abort_handler = abort;
	if (by.eh_device_reset_handler)
		by.eh_device_reset_handler = reset;
	/* Who has seen it before may read it still. */
	if (memcmp(copy, &by, sizeof(by)))
		memcpy(copy, &by, sizeof(by));
}

/*
 * Gives a host another template, unless its error handler is at work, or somebody
 * has one of its devices reset: they have read the template. Who is about to takes
 * the lock before.
 */
bool rust_virtio_helper_scsi_host_take(struct Scsi_Host *shost,
				       const struct scsi_host_template *by)
{
	bool idle;

	spin_lock_irq(shost->host_lock);
	idle = !scsi_host_in_recovery(shost) && !shost->host_failed && !shost->host_eh_scheduled;
	if (idle)
		WRITE_ONCE(shost->hostt, by);
	spin_unlock_irq(shost->host_lock);
	return idle;
}

void rust_virtio_helper_scsi_host_put_back(struct Scsi_Host *shost,
					   const struct scsi_host_template *own)
{
	WRITE_ONCE(shost->hostt, own);
	/* Else it is tried several times, with pauses, whether it is still busy. */
	atomic_set(&shost->host_blocked, 0);
}

/* The midlayer rejects what there is for its devices, and what comes. */
void rust_virtio_helper_scsi_host_set_offline(struct Scsi_Host *shost)
{
	struct scsi_device *sdev;
	unsigned long flags;

	spin_lock_irqsave(shost->host_lock, flags);
	list_for_each_entry(sdev, &shost->__devices, siblings)
		if (sdev->sdev_state == SDEV_RUNNING)
			WRITE_ONCE(sdev->sdev_state, SDEV_OFFLINE);
	spin_unlock_irqrestore(shost->host_lock, flags);
}

/* Waits until nobody looks for logical units who may have been about to before. */
void rust_virtio_helper_scsi_host_wait_scanned(struct Scsi_Host *shost)
{
	mutex_lock(&shost->scan_mutex);
	mutex_unlock(&shost->scan_mutex);
}

const struct scsi_host_template *rust_virtio_helper_scsi_template(const struct Scsi_Host *shost)
{
	return READ_ONCE(shost->hostt);
}

/* What the driver has in its template. */

enum scsi_qc_status rust_virtio_helper_scsi_host_queue(struct Scsi_Host *shost,
						       const struct scsi_host_template *own,
						       struct scsi_cmnd *cmd)
{
	return own->queuecommand(shost, cmd);
}

void rust_virtio_helper_scsi_host_poll(struct Scsi_Host *shost,
				       const struct scsi_host_template *own, unsigned int queue)
{
	if (own->mq_poll)
		own->mq_poll(shost, queue);
}

int rust_virtio_helper_scsi_cmnd_abort(const struct scsi_host_template *own, struct scsi_cmnd *cmd)
{
	return own->eh_abort_handler ? own->eh_abort_handler(cmd) : FAILED;
}

int rust_virtio_helper_scsi_cmnd_reset(const struct scsi_host_template *own, struct scsi_cmnd *cmd)
{
	return own->eh_device_reset_handler ? own->eh_device_reset_handler(cmd) : FAILED;
}

/* Commands. */

struct Scsi_Host *rust_virtio_helper_scsi_cmnd_host(const struct scsi_cmnd *cmd)
{
	return cmd->device->host;
}

struct request_queue *rust_virtio_helper_scsi_cmnd_queue(const struct scsi_cmnd *cmd)
{
	return cmd->device->request_queue;
}

bool rust_virtio_helper_scsi_cmnd_is_request(const struct scsi_cmnd *cmd)
{
	return cmd->submitter == SUBMITTED_BY_BLOCK_LAYER;
}
