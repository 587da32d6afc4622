// SPDX-License-Identifier: GPL-2.0

//! The vfio-user server: the socket, the protocol's callbacks, the worker thread and the end.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;
use vfio_bindings::bindings::vfio::{
    vfio_region_info, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_INFO_NORESIZE, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX,
    VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use crate::device::{Device, Ending};
use crate::mailbox::MAILBOX_SIZE;
use crate::socket::{Socket, SocketError};
use crate::transport::pci_common_config as common;
use crate::transport::pci_configuration::CONFIG_SIZE;

/// The server can't start.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals or threads can't be set up.
    #[error("can't start: {0}")]
    Start(io::Error),
}

/// The device, shared by the server thread, the worker and the signal thread.
struct Shared {
    device: Mutex<Device>,
    /// Tells the worker that there is a new deadline or work left over.
    wake: Condvar,
    /// The socket.
    path: PathBuf,
}

/// Ends the process, with the last word of the device.
fn exit(device: &mut Device, path: &Path) -> ! {
    device.summary();
    drop(Socket::at(path));
    std::process::exit(0)
}

/// The payload of the unwinding that leaves [`Server::run`]: the connection is to be closed.
struct Disconnect;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Device> {
        // The device has no state that a panic could leave half changed and that a reset would
        // not repair; going on beats a guest that hangs.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a fault asks for: closes the connection, or ends the process.
    fn end(&self, mut device: MutexGuard<'_, Device>) {
        match device.ending() {
            None => {}
            Some(Ending::Exit) => exit(&mut device, &self.path),
            Some(Ending::Disconnect) => {
                drop(device);
                // `run` owns the stream, gives nobody a handle to it, and ends neither on an error
                // of a callback. Unwinding drops it.
                panic::resume_unwind(Box::new(Disconnect));
            }
        }
    }

    /// Honours deadlines and goes on with queues that ran out of their share.
    fn worker(&self) {
        let mut device = self.lock();
        loop {
            device.tick();
            device.work();
            if device.ending() == Some(Ending::Exit) {
                exit(&mut device, &self.path);
            }
            if device.has_work() {
                drop(device);
                thread::yield_now();
                device = self.lock();
                continue;
            }
            device = match device.next_deadline_us() {
                None => self
                    .wake
                    .wait(device)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = Duration::from_micros(deadline.saturating_sub(device.now_us()));
                    self.wake
                        .wait_timeout(device, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }
}

/// One connection's callbacks.
struct Backend<'a> {
    shared: &'a Shared,
    /// The client has used the device: a connection, not a probe of the socket.
    connected: bool,
}

impl Backend<'_> {
    /// Tells the device of the client, the first time.
    fn greet(&mut self) {
        if !self.connected {
            self.connected = true;
            info!("a client is connected");
            self.shared.lock().connected();
        }
    }

    fn device(&mut self) -> MutexGuard<'_, Device> {
        self.greet();
        self.shared.lock()
    }
}

// The callbacks never fail: writes are posted, so there is nobody to tell, and what the guest does
// wrong is the device's business, not the protocol's.
impl ServerBackend for Backend<'_> {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.greet();
        let mut device = self.shared.lock();
        device.region_read(region, offset, data);
        let wake = device.has_work() || device.next_deadline_us().is_some();
        self.shared.end(device);
        if wake {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.greet();
        let mut device = self.shared.lock();
        device.region_write(region, offset, data);
        let wake = device.has_work() || device.next_deadline_us().is_some();
        self.shared.end(device);
        if wake {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        self.device()
            .remap(|dma| dma.map(flags, address, size, offset, fd))
            .map_err(|error| {
                error!("{error}");
                io::Error::other(error)
            })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.device().remap(|dma| dma.unmap(flags, address, size));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.device().bus_reset();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> io::Result<()> {
        self.device().irqs().set(index, flags, start, count, fds);
        Ok(())
    }
}

fn regions() -> Vec<ServerRegion> {
    (0..VFIO_PCI_NUM_REGIONS)
        .map(|index| {
            let size = match index {
                VFIO_PCI_BAR0_REGION_INDEX => common::VIRTIO_BAR_SIZE,
                VFIO_PCI_BAR1_REGION_INDEX => common::MSIX_BAR_SIZE,
                VFIO_PCI_BAR2_REGION_INDEX => MAILBOX_SIZE,
                VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_SIZE as u64,
                _ => 0,
            };
            let flags = match size {
                0 => 0,
                _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            };
            ServerRegion {
                region_info: vfio_region_info {
                    argsz: std::mem::size_of::<vfio_region_info>() as u32,
                    index,
                    flags,
                    size,
                    ..Default::default()
                },
                sparse_areas: Vec::new(),
                mmap_fd: None,
            }
        })
        .collect()
}

fn irqs(vectors: u16) -> Vec<IrqInfo> {
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| match index {
            VFIO_PCI_INTX_IRQ_INDEX => IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                count: 1,
            },
            VFIO_PCI_MSIX_IRQ_INDEX => IrqInfo {
                index,
                flags: VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE,
                count: vectors.into(),
            },
            _ => IrqInfo {
                index,
                flags: 0,
                count: 0,
            },
        })
        .collect()
}

/// Serves `device` on the socket `path`, one client at a time: for ever, or for one client if
/// `once`. SIGTERM and SIGINT end the process cleanly.
pub fn serve(device: Device, path: &Path, once: bool) -> Result<(), ServerError> {
    let vectors = device.vectors();
    let (socket, listener) = Socket::bind(path)?;
    let shared = Arc::new(Shared {
        device: Mutex::new(device),
        wake: Condvar::new(),
        path: path.into(),
    });

    // What the threads of the device type finish is given back by themselves: a worker between
    // them and the driver would cost a switch for each.
    let port = shared.lock().port().clone();
    let weak = Arc::downgrade(&shared);
    port.on_wake(move || {
        if let Some(shared) = weak.upgrade() {
            let mut device = shared.lock();
            device.collect();
            let wake = device.has_work() || device.next_deadline_us().is_some();
            drop(device);
            if wake {
                shared.wake.notify_one();
            }
        }
    });

    let worker = Arc::clone(&shared);
    thread::Builder::new()
        .name("worker".into())
        .spawn(move || worker.worker())
        .map_err(ServerError::Start)?;
    end_on_signal(Arc::clone(&shared))?;

    let server = Server::from_owned_fd(OwnedFd::from(listener), true, irqs(vectors), regions());
    info!("listening on {}", path.display());
    loop {
        let mut backend = Backend {
            shared: &shared,
            connected: false,
        };
        // Nothing is looked at after an unwinding that it could have left half done: the device
        // is unlocked before.
        let result = panic::catch_unwind(AssertUnwindSafe(|| server.run(&mut backend)));
        let result = match result {
            Ok(result) => result,
            Err(payload) if payload.is::<Disconnect>() => {
                info!("closing the connection, as was asked for");
                Ok(())
            }
            Err(payload) => panic::resume_unwind(payload),
        };
        if let Err(error) = &result {
            warn!("the connection ended: {error}");
        }
        if backend.connected {
            info!("the client is gone");
            shared.lock().disconnected();
            if once {
                break;
            }
        } else if let Err(vfio_user::Error::SocketAccept(error)) = result {
            return Err(ServerError::Start(error));
        }
    }
    drop(socket);
    Ok(())
}

/// On SIGTERM or SIGINT: say the last word, remove the socket, exit with status 0.
fn end_on_signal(shared: Arc<Shared>) -> Result<(), ServerError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(ServerError::Start)?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                // Nothing else happens while the lock is held, to the end.
                exit(&mut shared.lock(), &shared.path);
            }
        })
        .map_err(ServerError::Start)?;
    Ok(())
}
