// SPDX-License-Identifier: GPL-2.0

//! What has come of a test, in words: KTAP.
//!
//! See Documentation/dev-tools/ktap.rst.

use kernel::{
    alloc::AllocError,
    fmt::{
        self,
        Write as _, //
    },
    prelude::*,
};

use virtio::Status;

/// Text that grows. What there is no memory for is left out.
pub(crate) struct Text(KVec<u8>);

impl Text {
    pub(crate) const fn new() -> Self {
        Self(KVec::new())
    }

    pub(crate) fn as_str(&self) -> &str {
        // It is whole strings that are appended.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends what there is memory for.
    pub(crate) fn put(&mut self, args: fmt::Arguments<'_>) {
        let _ = self.write_fmt(args);
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0
            .extend_from_slice(text.as_bytes(), GFP_KERNEL)
            .map_err(|_| fmt::Error)
    }
}

/// Why a case has ended before its end. What was seen is in the words of the
/// [`Rig`](crate::rig::Rig).
pub(crate) enum End {
    /// A rule was broken.
    Fail,
    /// It can't be judged.
    Skip,
    /// The guest could not do it. [`EINTR`] and [`ENODEV`] end the run.
    Error(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<AllocError> for End {
    fn from(error: AllocError) -> Self {
        Self::Error(error.into())
    }
}

/// What comes of a case, or of a step of it.
pub(crate) type Test<T = ()> = Result<T, End>;

/// How many status accesses of a case are kept.
const TRACE: usize = 48;

/// The status accesses of a case.
pub(crate) struct Trace {
    steps: KVec<Step>,
    left_out: usize,
}

struct Step {
    write: bool,
    status: Status,
    times: u32,
}

impl Trace {
    pub(crate) const fn new() -> Self {
        Self {
            steps: KVec::new(),
            left_out: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.left_out = 0;
    }

    pub(crate) fn add(&mut self, write: bool, status: Status) {
        if let Some(last) = self.steps.last_mut() {
            if !write && !last.write && last.status == status {
                last.times = last.times.saturating_add(1);
                return;
            }
        }
        let step = Step {
            write,
            status,
            times: 1,
        };
        if self.steps.len() >= TRACE || self.steps.push(step, GFP_KERNEL).is_err() {
            self.left_out += 1;
        }
    }

    /// As the test device writes it, and `*N` for a read that was repeated.
    pub(crate) fn show(&self, text: &mut Text) {
        for step in self.steps.iter() {
            let kind = if step.write { 'w' } else { 'r' };
            text.put(fmt!(" {kind}{:02x}", step.status.bits()));
            if step.times > 1 {
                text.put(fmt!("*{}", step.times));
            }
        }
        if self.left_out > 0 {
            text.put(fmt!(" and {} more", self.left_out));
        }
    }
}
