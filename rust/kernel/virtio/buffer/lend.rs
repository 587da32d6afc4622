// SPDX-License-Identifier: GPL-2.0

//! Buffers of a driver's own making.

use core::{
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};

use kernel::{
    alloc::Flags,
    prelude::*, //
};

use super::{
    private::Sealed,
    DmaBytes,
    DmaMemory,
    Lists,
    Token, //
};
use crate::bindings::{
    self,
    scatterlist, //
};

/// A buffer of a driver's own making: memory of which it tells each time what the device is to
/// read, and what to write.
///
/// In a [`LendBox`] it is the [`Token`]. While the device has the buffer nobody can reach it, so
/// that a device never writes what is borrowed.
///
/// # Examples
///
/// A request with a header, of as many bytes as it has, and room for an answer.
///
/// ```
/// use kernel::prelude::*;
/// use virtio::{DmaBytes, DmaPages, Lend, LendBox, Parts};
///
/// struct Request {
///     header: DmaBytes,
///     data: DmaPages,
///     /// How much of it is in use.
///     len: usize,
///     answer: DmaBytes,
/// }
///
/// impl Lend for Request {
///     fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
///         parts.readable(&self.header, 16)?;
///         parts.readable(&self.data, self.len)?;
///         parts.writable(&mut self.answer, 1)
///     }
/// }
///
/// fn request() -> Result<LendBox<Request>> {
///     let request = Request {
///         header: DmaBytes::new(16, GFP_KERNEL)?,
///         data: DmaPages::new(65536, GFP_KERNEL)?,
///         len: 512,
///         answer: DmaBytes::new(1, GFP_KERNEL)?,
///     };
///     LendBox::new(request, GFP_KERNEL)
/// }
/// # fn main() {}
/// ```
///
/// What is not the buffer's own can't be lent:
///
/// ```compile_fail,E0597
/// use kernel::prelude::*;
/// use virtio::{DmaBytes, Lend, Parts};
///
/// struct Nothing;
///
/// impl Lend for Nothing {
///     fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
///         let bytes = DmaBytes::new(16, GFP_ATOMIC)?;
///         parts.readable(&bytes, 16)
///     }
/// }
/// # fn main() {}
/// ```
pub trait Lend: Send + 'static {
    /// Lends the device the parts of the buffer. Any number, but those that it reads come first.
    ///
    /// Called each time that the buffer is made available, with the virtqueue locked: nothing may
    /// sleep, and no virtqueue of the device be locked. And once by [`LendBox::new`], so that it is
    /// known early how much memory the list of the parts needs.
    ///
    /// # Errors
    ///
    /// Those of [`Parts`], or of the driver: the buffer is not made available then.
    fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result;
}

/// The parts of a buffer, see [`Lend`].
///
/// `'a` is for how long they are lent: until the device has given the buffer back.
pub struct Parts<'a> {
    readable: &'a mut Entries,
    writable: &'a mut Entries,
    /// How memory for the lists is allocated.
    flags: Flags,
}

impl<'a> Parts<'a> {
    /// Has the device read the first `len` bytes; none, if that is 0.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are not so many, it is more than a buffer can have, or there is a part
    /// already that the device writes; [`ENOMEM`] if memory is short.
    pub fn readable(&mut self, memory: &'a impl DmaMemory, len: usize) -> Result {
        if !self.writable.list.is_empty() {
            return Err(EINVAL);
        }
        self.readable.push(memory, len, self.flags)
    }

    /// Has the device write to the first `len` bytes; to none, if that is 0.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are not so many, or it is more than a buffer can have; [`ENOMEM`] if
    /// memory is short.
    pub fn writable(&mut self, memory: &'a mut impl DmaMemory, len: usize) -> Result {
        self.writable.push(memory, len, self.flags)
    }
}

/// A scatterlist that grows, and is kept: a buffer that is used again has it already.
struct Entries {
    list: KVec<scatterlist>,
    /// How many bytes that is.
    len: usize,
}

impl Entries {
    const fn new() -> Self {
        Self {
            list: KVec::new(),
            len: 0,
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
    }

    fn push(&mut self, memory: &impl DmaMemory, len: usize, flags: Flags) -> Result {
        if len > memory.len() {
            return Err(EINVAL);
        }
        let total = self.len.checked_add(len).ok_or(EINVAL)?;
        // VIRTIO 1.4, "The Virtqueue Descriptor Table": no more than 2^32 bytes.
        u32::try_from(total).map_err(|_| EINVAL)?;

        let mut left = len;
        memory.runs(&mut |ptr, run| {
            let run = run.min(left);
            left -= run;
            if run == 0 {
                return Ok(());
            }
            self.push_run(ptr, run, flags)
        })?;
        self.len = total;
        Ok(())
    }

    fn push_run(&mut self, ptr: NonNull<u8>, len: usize, flags: Flags) -> Result {
        let mut entry = scatterlist::default();
        // CAST: Has been checked.
        //
        // SAFETY: The entry is valid for writing, and the memory of the linear mapping; nothing but
        // its address is looked at here.
        unsafe { bindings::sg_init_one(&mut entry, ptr.as_ptr().cast(), len as c_uint) };
        // It is marked as the last one, and the one before is no more.
        self.list.push(entry, flags)?;
        if let [.., before, _] = &mut self.list[..] {
            // SAFETY: The entry is valid, and has been initialised.
            unsafe { bindings::sg_unmark_end(before) };
        }
        Ok(())
    }

    /// Tells the scatterlist, if there is one.
    fn tell(&mut self, lists: &mut Lists, writable: bool) -> Result {
        let Some(first) = self.list.first_mut() else {
            return Ok(());
        };
        lists.push(NonNull::from(first), writable)?;
        lists.count(self.list.len());
        Ok(())
    }
}

/// The [`Token`] of a buffer of a driver's own making.
///
/// It is a box: what is in it can be reached while the driver has it.
pub struct LendBox<B: Lend>(KBox<Inner<B>>);

struct Inner<B> {
    readable: Entries,
    writable: Entries,
    buffer: B,
}

impl<B: Lend> LendBox<B> {
    /// Puts a buffer into a box. To make it available needs no memory then, unless it has more
    /// parts by that time; and one that a virtqueue gives back has its memory still.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and those of [`Lend::lend`].
    pub fn new(buffer: B, flags: Flags) -> Result<Self> {
        let mut this = Self(KBox::new(
            Inner {
                readable: Entries::new(),
                writable: Entries::new(),
                buffer,
            },
            flags,
        )?);
        this.0.gather(flags)?;
        Ok(this)
    }
}

impl<B: Lend> Inner<B> {
    /// Has the buffer tell its parts, which are lent as long as this is borrowed.
    fn gather(&mut self, flags: Flags) -> Result<(&mut Entries, &mut Entries)> {
        let Self {
            readable,
            writable,
            buffer,
        } = self;
        readable.clear();
        writable.clear();
        buffer.lend(&mut Parts {
            readable: &mut *readable,
            writable: &mut *writable,
            flags,
        })?;
        Ok((readable, writable))
    }
}

impl<B: Lend> Deref for LendBox<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0.buffer
    }
}

impl<B: Lend> DerefMut for LendBox<B> {
    fn deref_mut(&mut self) -> &mut B {
        &mut self.0.buffer
    }
}

impl<B: Lend> Sealed for LendBox<B> {}

// SAFETY:
// - `KBox::from_raw` undoes `KBox::into_raw`.
// - The memory is `DmaMemory`, with all that this says; parts that the device writes are borrowed
//   mutably, and so overlap with none.
// - The borrow that `lists` makes of the buffer lasts for as long as the token is not touched but
//   by `into_raw`, and until `from_raw` then. What `Lend::lend` lends is borrowed for as long as
//   that, for an `'a` that it can't choose, so that by the rules of the language it stays valid: it
//   is in the box, of which there is just a raw pointer, or is borrowed for ever. For as long
//   nobody else borrows what the device writes, and nobody can write what it reads: `DmaMemory`
//   can't be written by a shared borrow.
// - The entries of a scatterlist are in a `KVec` in the box, which only `lists` changes.
unsafe impl<B: Lend> Token for LendBox<B> {
    fn into_raw(self) -> NonNull<c_void> {
        // SAFETY: A box never is a null pointer.
        unsafe { NonNull::new_unchecked(KBox::into_raw(self.0)) }.cast()
    }

    unsafe fn from_raw(ptr: NonNull<c_void>) -> Self {
        // SAFETY: By the safety requirements, `ptr` comes from `KBox::into_raw` above, and nobody
        // else has made a box of it again.
        Self(unsafe { KBox::from_raw(ptr.cast().as_ptr()) })
    }

    fn lists(&mut self, lists: &mut Lists) -> Result {
        let inner = &raw mut *self.0;
        // SAFETY: The box is valid, and borrowed mutably. What is in it does not move when the box
        // does, and is not reached otherwise until the box is used again, when the borrow has
        // ended.
        let inner = unsafe { &mut *inner };
        let (readable, writable) = inner.gather(GFP_ATOMIC)?;
        readable.tell(lists, false)?;
        writable.tell(lists, true)
    }

    fn writable_len(&self) -> usize {
        self.0.writable.len
    }
}

/// A buffer of one part that the device reads, one that it writes, or both.
///
/// `context` is the driver's own.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use virtio::{Buffer, LendBox};
///
/// fn request() -> Result<LendBox<Buffer<u64>>> {
///     let mut request = Buffer::new(16, 512, 42, GFP_KERNEL)?;
///     request.readable_mut().fill(0);
///     Ok(request)
/// }
/// # fn main() {}
/// ```
pub struct Buffer<C: Send + 'static = ()> {
    readable: DmaBytes,
    writable: DmaBytes,
    /// What the driver wants to find again when the buffer comes back.
    pub context: C,
}

impl<C: Send + 'static> Buffer<C> {
    /// Allocates a buffer of `readable` bytes for the device to read, followed by `writable` bytes
    /// for it to write; all are zero.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] if both lengths are 0.
    pub fn new(
        readable: usize,
        writable: usize,
        context: C,
        flags: Flags,
    ) -> Result<LendBox<Self>> {
        if readable == 0 && writable == 0 {
            return Err(EINVAL);
        }
        LendBox::new(
            Self {
                readable: DmaBytes::new(readable, flags)?,
                writable: DmaBytes::new(writable, flags)?,
                context,
            },
            flags,
        )
    }

    /// What the device will read.
    pub fn readable_mut(&mut self) -> &mut [u8] {
        self.readable.as_mut_slice()
    }

    /// What the device has written, see [`DmaBytes::written`].
    pub fn written(&self, written: usize) -> &[u8] {
        self.writable.written(written)
    }

    /// Copies what the device has written to `to`, from byte `from` on, and returns how many bytes
    /// that were. `written` is as for [`Buffer::written`].
    pub fn copy_written(&self, written: usize, from: usize, to: &mut [u8]) -> usize {
        let bytes = self.written(written);
        if from >= bytes.len() {
            return 0;
        }
        // SAFETY: Any index and size will do.
        let from = unsafe { bindings::array_index_nospec(from, bytes.len()) };
        let bytes = &bytes[from..];
        let len = bytes.len().min(to.len());

        to[..len].copy_from_slice(&bytes[..len]);
        len
    }
}

impl<C: Send + 'static> Lend for Buffer<C> {
    fn lend<'a>(&'a mut self, parts: &mut Parts<'a>) -> Result {
        parts.readable(&self.readable, self.readable.len())?;
        let len = self.writable.len();
        parts.writable(&mut self.writable, len)
    }
}
