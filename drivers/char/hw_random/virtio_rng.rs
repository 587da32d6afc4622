// SPDX-License-Identifier: GPL-2.0-or-later

//! Driver for virtio entropy devices.
//!
//! VIRTIO 1.4, "Entropy Device". One request is always pending: when a reader has used up what the
//! device delivered, the buffer goes back to the device at once.
//!
//! # Suspend
//!
//! While the device is suspended, what it delivered before can still be read. When that is used
//! up, a reader waits, and goes on after the resume; one with `O_NONBLOCK` gets `EAGAIN`. There is
//! nothing to flush: what the device delivers is either in the buffer or has never been promised.
//!
//! Based on the C driver, drivers/char/hw_random/virtio-rng.c, by Rusty Russell.

use kernel::{
    device::{
        Bound,
        Core, //
    },
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    time::msecs_to_jiffies, //
};

use virtio::{
    compat::{
        new_spinlock_irq,
        LocalInterruptDisabled,
        SpinLockIrq, //
    },
    hw_random::{
        self,
        Source, //
    },
    suspend::{
        Failure,
        Native,
        Patience,
        Quiesce, //
    },
    sync::Completion,
    AddError,
    Buffer,
    Device,
    DeviceId,
    Driver,
    IdTable,
    LendBox,
    VirtQueue, //
};

/// The size of the one buffer in bytes: a cache line, and what a read of the core asks for.
const BUFFER_SIZE: usize = 64;

/// How long a reader waits, in milliseconds, before it comes again.
///
/// That lets it see signals that do not kill, the freezer's among them.
const PATIENCE_MS: u32 = 1000;

/// The same while the device is suspended.
///
/// The core serialises its readers: one that waits for the device, its own thread among them,
/// would otherwise keep those from their `EAGAIN` that don't want to wait.
const PATIENCE_SUSPENDED_MS: u32 = 50;

/// What the device has delivered.
struct Delivered {
    /// The buffer, unless the device has it.
    buffer: Option<LendBox<Buffer>>,
    /// How many bytes the device has written.
    len: usize,
    /// How many of them have been read.
    read: usize,
    /// Whether the device is in operation.
    present: bool,
}

/// A source of entropy: the part of a device that the readers know.
#[pin_data]
struct Entropy {
    queue: Arc<VirtQueue<LendBox<Buffer>>>,
    /// Taken before the lock of `queue`.
    #[pin]
    delivered: SpinLockIrq<Delivered>,
    /// Done when the device has delivered something, or something else has to be looked at. Only
    /// changed with `delivered` locked.
    #[pin]
    have_data: Completion,
    /// Whether the device is suspended or about to be.
    suspended: Atomic<bool>,
}

impl Entropy {
    fn new(queue: Arc<VirtQueue<LendBox<Buffer>>>) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                queue,
                delivered <- new_spinlock_irq!(Delivered {
                    buffer: None,
                    len: 0,
                    read: 0,
                    present: false,
                }),
                have_data <- Completion::new(),
                suspended: Atomic::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// The device is in operation, and has no buffer yet: gives it one.
    fn start(&self) -> Result {
        let buffer = Buffer::new(0, BUFFER_SIZE, (), GFP_KERNEL)?;

        self.suspended.store(false, Relaxed);
        let mut delivered = self.delivered.lock();
        *delivered = Delivered {
            buffer: Some(buffer),
            len: 0,
            read: 0,
            present: true,
        };
        self.request(&mut delivered)
    }

    /// The device is about to be reset.
    fn stop(&self) {
        let mut delivered = self.delivered.lock();
        delivered.present = false;
        self.have_data.complete_all();
    }

    /// Gives the device the buffer, if all of it has been read.
    ///
    /// # Errors
    ///
    /// Those of [`AddError`]: the buffer is kept, to be tried again.
    fn request(&self, delivered: &mut Delivered) -> Result {
        if !delivered.present || delivered.read < delivered.len {
            return Ok(());
        }
        let Some(buffer) = delivered.buffer.take() else {
            return Ok(());
        };
        delivered.len = 0;
        delivered.read = 0;
        self.have_data.reinit();

        let mut queue = self.queue.lock();
        match queue.add(buffer) {
            Ok(()) => {
                queue.kick();
                Ok(())
            }
            Err(AddError { token, error }) => {
                delivered.buffer = Some(token);
                Err(error)
            }
        }
    }

    /// Takes the buffer back from the device, if that has used it.
    fn receive(&self, irq: &LocalInterruptDisabled) {
        let mut delivered = self.delivered.lock_with(irq);
        let mut queue = self.queue.lock();

        // There may be none: there are spurious notifications, for example if an interrupt is
        // shared.
        while let Some(used) = queue.get_buf() {
            delivered.buffer = Some(used.token);
            delivered.len = used.len;
            delivered.read = 0;
            // A device that delivers nothing is not asked again before the reader's patience is
            // over.
            if used.len > 0 {
                self.have_data.complete();
            }
        }
    }

    /// Copies what has been delivered, and asks for more when it is used up.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device is not in operation.
    fn copy(&self, data: &mut [u8]) -> Result<usize> {
        let mut delivered = self.delivered.lock();
        if !delivered.present {
            return Err(ENODEV);
        }
        let len = delivered.buffer.as_ref().map_or(0, |buffer| {
            buffer.copy_written(delivered.len, delivered.read, data)
        });

        delivered.read += len;
        // While the device is suspended this fails. It is tried again when it has been resumed, and
        // by every reader.
        let _ = self.request(&mut delivered);
        Ok(len)
    }

    /// Waits until there is something to look at, or the reader is to let others in.
    ///
    /// Returns whether there is something to look at.
    fn wait(&self) -> Result<bool> {
        let patience = if self.suspended.load(Relaxed) {
            PATIENCE_SUSPENDED_MS
        } else {
            PATIENCE_MS
        };
        self.have_data
            .wait_killable_timeout(msecs_to_jiffies(patience))
    }

    /// Notes that the device is or is not suspended, and makes a reader look.
    fn set_suspended(&self, suspended: bool) {
        let mut delivered = self.delivered.lock();
        self.suspended.store(suspended, Relaxed);
        if suspended {
            self.have_data.complete();
        } else {
            // As in `copy`.
            let _ = self.request(&mut delivered);
        }
    }
}

impl Source for Entropy {
    fn read(this: ArcBorrow<'_, Self>, data: &mut [u8], wait: bool) -> Result<usize> {
        let mut read = this.copy(data)?;

        while wait && read < data.len() {
            match this.wait() {
                Ok(true) => {}
                // What has been copied is not thrown away.
                Err(error) if read == 0 => return Err(error),
                _ => break,
            }
            // Nothing, although there was something to look at: a device that delivers nothing must
            // not keep its reader here.
            match this.copy(&mut data[read..]) {
                Ok(len) if len > 0 => read += len,
                Err(error) if read == 0 => return Err(error),
                _ => break,
            }
        }
        Ok(read)
    }

    fn cleanup(this: ArcBorrow<'_, Self>) {
        let _delivered = this.delivered.lock();
        this.have_data.complete();
    }
}

/// The data of a device.
struct RngData {
    entropy: Arc<Entropy>,
    /// Whether the source has been registered.
    registered: Atomic<bool>,
}

impl RngData {
    /// Registers the source, by the first name that is free. Calls exclude each other: the device
    /// lock is held.
    fn register(&self, dev: &Device<Core<'_>>) -> Result {
        if self.registered.load(Relaxed) {
            return Ok(());
        }
        for index in 0.. {
            let name = CString::try_from_fmt(fmt!("virtio_rng.{index}"))?;
            match hw_random::register(dev.as_ref(), name, self.entropy.clone()) {
                Err(error) if error == EEXIST => continue,
                result => {
                    result?;
                    break;
                }
            }
        }
        self.registered.store(true, Relaxed);
        Ok(())
    }
}

struct RngDriver;

virtio::virtio_device_table!(ID_TABLE, [DeviceId::new(DeviceId::ENTROPY)]);

impl Driver for RngDriver {
    type Data<'bound> = RngData;
    type Queue = ();
    type Suspend = Native;

    const ID_TABLE: IdTable = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let mut queues = dev.virtqueues::<Self>();
        let input = queues.add((), fmt!("input"))?;
        queues.find()?;

        Ok(RngData {
            entropy: Entropy::new(input)?,
            registered: Atomic::new(false),
        })
    }

    fn start(dev: &Device<Core<'_>>, this: Pin<&RngData>) -> Result {
        this.entropy.start()?;
        this.register(dev)
    }

    fn stop(_dev: &Device<Core<'_>>, this: Pin<&RngData>) {
        this.entropy.stop();
    }

    fn used(_dev: &Device<Bound>, this: Pin<&RngData>, _queue: (), irq: &LocalInterruptDisabled) {
        this.entropy.receive(irq);
    }
}

impl Quiesce for RngDriver {
    fn gate(
        _dev: &Device<Bound>,
        this: Pin<&RngData>,
        _patience: &Patience<'_>,
    ) -> Result<(), Failure> {
        this.entropy.set_suspended(true);
        Ok(())
    }

    fn ungate(_dev: &Device<Bound>, this: Pin<&RngData>) {
        this.entropy.set_suspended(false);
    }
}

virtio::module_virtio_driver! {
    type: RngDriver,
    name: "virtio_rng",
    authors: ["The virtio-suspend developers"],
    description: "Virtio random number driver",
    license: "GPL",
}
