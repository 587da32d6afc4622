// SPDX-License-Identifier: GPL-2.0

//! The state of the virtqueues, in debugfs.
//!
//! `/sys/kernel/debug/virtio_suspend/virtioN/queues` is a table with a line for each virtqueue, as
//! recorded when the device was last suspended.

use kernel::{
    debugfs::{
        Dir,
        File, //
    },
    fmt,
    prelude::*,
    str::CString,
    sync::{
        global_lock,
        Arc,
        Mutex, //
    },
};

use crate::{
    queue::Record,
    sync::lock_class, //
};

global_lock! {
    // SAFETY: `DebugfsRoot::new`, called when the module is loaded, initializes it before anything
    // else in the module can run.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// `/sys/kernel/debug/virtio_suspend`, which is there as long as the module.
pub(crate) struct DebugfsRoot(());

impl DebugfsRoot {
    pub(crate) fn new() -> Self {
        // SAFETY: A module is loaded once, and this is called from its init function only.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(Dir::new(c"virtio_suspend"));
        Self(())
    }
}

impl Drop for DebugfsRoot {
    fn drop(&mut self) {
        // A static is not dropped when its module is unloaded.
        ROOT.lock().take();
    }
}

/// The records of a device's virtqueues.
#[pin_data]
pub(super) struct Records {
    #[pin]
    pub(super) queues: Mutex<KVec<Record>>,
}

impl Records {
    pub(super) fn new() -> impl PinInit<Self> {
        let class = lock_class!(c"suspend::Records::queues");
        pin_init!(Self {
            queues <- Mutex::new(KVec::new(), class.0, class.1),
        })
    }
}

/// The directory of a device.
pub(super) struct Directory {
    _file: Pin<KBox<File<Arc<Records>>>>,
    _dir: Dir,
}

impl Directory {
    pub(super) fn new(index: u32, records: Arc<Records>) -> Result<Self> {
        let name = CString::try_from_fmt(fmt!("virtio{index}"))?;
        let dir = ROOT.lock().as_ref().ok_or(ENODEV)?.subdir(&name);
        let file = KBox::pin_init(
            dir.read_callback_file(c"queues", Ok::<_, Error>(records), &show),
            GFP_KERNEL,
        )?;

        Ok(Self {
            _file: file,
            _dir: dir,
        })
    }
}

/// A position in a ring, as it is shown.
struct Index(Option<(u16, bool)>);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some((index, _)) => fmt::Display::fmt(&index, f),
            None => f.pad("-"),
        }
    }
}

fn show(records: &Arc<Records>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_fmt(fmt!(
        "{:>5} {:>6} {:>6} {:>6} {:>4} {:>6} {:>4} {:>11} {}\n",
        "queue",
        "layout",
        "size",
        "avail",
        "wrap",
        "used",
        "wrap",
        "outstanding",
        "name"
    ))?;
    for record in records.queues.lock().iter() {
        let wrap = |position: Option<(u16, bool)>| match (record.packed, position) {
            (false, _) | (_, None) => "-",
            (true, Some((_, false))) => "0",
            (true, Some((_, true))) => "1",
        };
        f.write_fmt(fmt!(
            "{:>5} {:>6} {:>6} {:>6} {:>4} {:>6} {:>4} {:>11} {}\n",
            record.index,
            if record.packed { "packed" } else { "split" },
            record.size,
            Index(record.available),
            wrap(record.available),
            Index(record.used),
            wrap(record.used),
            record.outstanding,
            record.name
        ))?;
    }
    Ok(())
}
