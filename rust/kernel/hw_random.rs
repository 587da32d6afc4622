// SPDX-License-Identifier: GPL-2.0

//! Hardware random number generators.
//!
//! Upstream this would be `kernel::hw_random`.
//!
//! C header: [`include/linux/hw_random.h`](srctree/include/linux/hw_random.h)

use core::marker::PhantomData;

use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    str::CString,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

use crate::bindings;

/// A source of random numbers.
///
/// # Examples
///
/// ```
/// use kernel::{prelude::*, sync::ArcBorrow};
/// use virtio::hw_random::Source;
///
/// /// Not recommended.
/// struct Constant(u8);
///
/// impl Source for Constant {
///     fn read(this: ArcBorrow<'_, Self>, data: &mut [u8], _wait: bool) -> Result<usize> {
///         data.fill(this.0);
///         Ok(data.len())
///     }
/// }
/// # fn main() {}
/// ```
pub trait Source: Send + Sync + 'static {
    /// Fills `data` with random bytes, and returns how many there are. Process context; the core
    /// calls this for one reader at a time.
    ///
    /// If `wait` is false, this must not wait for the device. If it is true, 0 may be returned
    /// nevertheless: a reader then comes again, others get their turn meanwhile, and signals are
    /// looked at.
    ///
    /// # Errors
    ///
    /// What the reader is to be told.
    fn read(this: ArcBorrow<'_, Self>, data: &mut [u8], wait: bool) -> Result<usize>;

    /// The source is no longer the current one, and nobody reads any more.
    fn cleanup(this: ArcBorrow<'_, Self>) {
        let _ = this;
    }
}

/// Registers `source` as a random number generator, until `dev` is unbound. `name` shows up in
/// `rng_available`. May sleep.
///
/// There is nothing that a driver has to keep, or could forget: the core of the generators holds no
/// reference to the module whose functions it calls.
///
/// After the driver's own data has been dropped, the source may still be asked for a moment.
///
/// # Errors
///
/// [`EEXIST`] if there is a generator of that name, [`ENOMEM`] if memory is short.
pub fn register<T: Source>(dev: &Device<Bound>, name: CString, source: Arc<T>) -> Result {
    devres::register(dev, Registration::new(name, source), GFP_KERNEL)
}

/// The registration of a random number generator.
///
/// # Invariants
///
/// `rng` is registered, and its `priv` is an `Arc<T>` as a foreign pointer, which it owns.
#[pin_data(PinnedDrop)]
struct Registration<T: Source> {
    #[pin]
    rng: Opaque<bindings::hwrng>,
    name: CString,
    _source: PhantomData<Arc<T>>,
}

// SAFETY: The registration can be undone in any thread, and so can the source be dropped.
unsafe impl<T: Source> Send for Registration<T> {}

// SAFETY: There is nothing that a shared reference to a registration can be used for.
unsafe impl<T: Source> Sync for Registration<T> {}

impl<T: Source> Registration<T> {
    /// See [`register`].
    fn new(name: CString, source: Arc<T>) -> impl PinInit<Self, Error> {
        let name_ptr = name.as_char_ptr();

        try_pin_init!(Self {
            rng <- Opaque::try_ffi_init(move |slot: *mut bindings::hwrng| {
                let rng = bindings::hwrng {
                    name: name_ptr,
                    read: Some(Self::read_callback),
                    cleanup: Some(Self::cleanup_callback),
                    // CAST: An `unsigned long` has room for a pointer.
                    priv_: source.into_foreign() as usize,
                    ..Default::default()
                };
                // SAFETY: `slot` is valid for writing.
                unsafe { slot.write(rng) };

                // SAFETY: `slot` is pinned, and stays until the registration is dropped. So does
                // the name: moving a `CString` doesn't move its characters.
                to_result(unsafe { bindings::hwrng_register(slot) }).inspect_err(|_| {
                    // SAFETY: The pointer comes from `into_foreign` above, and nobody has got it.
                    drop(unsafe { Arc::<T>::from_foreign((*slot).priv_ as *mut _) });
                })
            }),
            name,
            _source: PhantomData,
        })
    }

    /// # Safety
    ///
    /// `rng` must be the generator of a registration that is not dropped during `'a`.
    unsafe fn source<'a>(rng: *mut bindings::hwrng) -> ArcBorrow<'a, T> {
        // SAFETY: By the type invariants, `priv` comes from `Arc::into_foreign`, and it is not
        // taken back before the registration is dropped.
        unsafe { Arc::<T>::borrow((*rng).priv_ as *mut _) }
    }

    unsafe extern "C" fn read_callback(
        rng: *mut bindings::hwrng,
        data: *mut c_void,
        max: usize,
        wait: bool,
    ) -> c_int {
        // SAFETY: The core calls this for a registered generator, of which it holds a reference:
        // `hwrng_unregister` waits for it.
        let source = unsafe { Self::source(rng) };
        let data = data.cast::<u8>();
        // The core's buffers are not initialised, but a slice must be.
        //
        // SAFETY: The core passes a buffer of `max` bytes.
        unsafe { data.write_bytes(0, max) };
        // SAFETY: As above; nobody else accesses the buffer during the call.
        let data = unsafe { core::slice::from_raw_parts_mut(data, max) };

        // CAST: The core's buffers have less than a page.
        from_result(|| Ok(T::read(source, data, wait)?.min(max) as c_int))
    }

    unsafe extern "C" fn cleanup_callback(rng: *mut bindings::hwrng) {
        // SAFETY: As in `read_callback`: `hwrng_unregister` waits for the cleanup, too.
        T::cleanup(unsafe { Self::source(rng) });
    }
}

#[pinned_drop]
impl<T: Source> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        let rng = self.rng.get();

        // SAFETY: By the type invariants the generator is registered.
        unsafe { bindings::hwrng_unregister(rng) };
        // SAFETY: By the type invariants the pointer comes from `into_foreign`. Nobody else uses
        // it any more: `hwrng_unregister` has waited for all callbacks.
        drop(unsafe { Arc::<T>::from_foreign((*rng).priv_ as *mut _) });
    }
}
