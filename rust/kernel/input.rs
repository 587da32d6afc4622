// SPDX-License-Identifier: GPL-2.0

//! Input devices: keyboards, mice, touch screens.
//!
//! Upstream this would be `kernel::input`.
//!
//! C headers: [`include/linux/input.h`](srctree/include/linux/input.h),
//! [`include/linux/input/mt.h`](srctree/include/linux/input/mt.h)

use core::{
    marker::PhantomData,
    ptr::{
        null,
        NonNull, //
    },
};

use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
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
    types::ForeignOwnable, //
};

use crate::bindings;

/// Defines types of events.
macro_rules! event_types {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        // CAST: All of them are small.
        pub const $name: u16 = bindings::$name as u16;
    )*};
}

event_types! {
    /// Type of events: the others before it are complete.
    EV_SYN;
    /// Type of events: a key or button.
    EV_KEY;
    /// Type of events: a movement.
    EV_REL;
    /// Type of events: a position.
    EV_ABS;
    /// Type of events: what is none of the others.
    EV_MSC;
    /// Type of events: a switch.
    EV_SW;
    /// Type of events, for the device: a light.
    EV_LED;
    /// Type of events, for the device: a sound.
    EV_SND;
    /// Type of events, for the device: how keys repeat.
    EV_REP;
}

/// How many axes there can be.
pub const ABS_CNT: usize = bindings::ABS_CNT as usize;

/// The axis that tells which contact of a touch screen the next events are about.
pub const ABS_MT_SLOT: usize = bindings::ABS_MT_SLOT as usize;

// CAST: It is small.
/// The axis that tells which contact it is, -1 for none.
const ABS_MT_TRACKING_ID: u16 = bindings::ABS_MT_TRACKING_ID as u16;

/// The code of the [`EV_SYN`] event that ends what is reported at a time.
const SYN_REPORT: u16 = 0;

// CAST: Both are small.
/// The code of an [`EV_MSC`] event: when the contacts of a touch screen were as they are told.
pub const MSC_TIMESTAMP: u16 = bindings::MSC_TIMESTAMP as u16;

/// The bus of a device that has none.
pub const BUS_VIRTUAL: u16 = bindings::BUS_VIRTUAL as u16;

/// What happened, or what the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The type, one of `EV_*`.
    pub kind: u16,
    /// Which key, axis and so on.
    pub code: u16,
    /// The value.
    pub value: i32,
}

/// By what programs know the make of a device, `struct input_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// The bus.
    pub bustype: u16,
    /// The vendor.
    pub vendor: u16,
    /// The product.
    pub product: u16,
    /// The version.
    pub version: u16,
}

/// What values an axis can have, `struct input_absinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbsInfo {
    /// The least value.
    pub minimum: i32,
    /// The greatest.
    pub maximum: i32,
    /// How much it changes by noise.
    pub fuzz: i32,
    /// How far from the middle is still the middle.
    pub flat: i32,
    /// The resolution, in units per millimetre, or per radian.
    pub resolution: i32,
}

/// What carries out the events that are for the device.
pub trait Handler: Send + Sync + 'static {
    /// Has the device do something. Called with interrupts disabled and a lock of the input device
    /// held: nothing may sleep, and no event be reported.
    ///
    /// # Errors
    ///
    /// Nobody is told.
    fn event(this: ArcBorrow<'_, Self>, event: Event) -> Result;
}

/// Strings that the core of the input devices does not copy.
#[derive(Default)]
struct Names {
    name: Option<CString>,
    phys: Option<CString>,
    uniq: Option<CString>,
}

/// An input device that is not registered yet.
///
/// # Examples
///
/// ```
/// use kernel::{device::{Bound, Device}, devres::Devres, prelude::*, str::CString};
/// use kernel::sync::{Arc, ArcBorrow};
/// use virtio::input::{self, Builder, Event, Handler, Registration};
///
/// struct Deaf;
///
/// impl Handler for Deaf {
///     fn event(_this: ArcBorrow<'_, Self>, _event: Event) -> Result {
///         Err(ENODEV)
///     }
/// }
///
/// /// Registers a device with one key, which is pressed.
/// fn add(dev: &Device<Bound>) -> Result<Devres<Registration<Deaf>>> {
///     let mut builder = Builder::new()?;
///     builder.set_name(CString::try_from_fmt(fmt!("a key"))?);
///     // The first byte has bits 0 to 7.
///     builder.add_codes(input::EV_KEY, &[1 << 1])?;
///     let key = builder.register(dev, Arc::new(Deaf, GFP_KERNEL)?)?;
///     key.access(dev)?.report(Event { kind: input::EV_KEY, code: 1, value: 1 });
///     Ok(key)
/// }
/// # fn main() {}
/// ```
///
/// # Invariants
///
/// `dev` has been allocated by `input_allocate_device`, is not registered, and nobody else knows
/// it.
pub struct Builder {
    dev: NonNull<bindings::input_dev>,
    names: Names,
    slots: u32,
}

impl Builder {
    /// Begins with a device that can do nothing. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // SAFETY: May be called whenever it is possible to sleep.
        let dev = NonNull::new(unsafe { bindings::input_allocate_device() }).ok_or(ENOMEM)?;
        // INVARIANT: It is a new one.
        Ok(Self {
            dev,
            names: Names::default(),
            slots: 0,
        })
    }

    /// Sets the name.
    pub fn set_name(&mut self, name: CString) {
        self.names.name = Some(name);
    }

    /// Sets where the device is.
    pub fn set_phys(&mut self, phys: CString) {
        self.names.phys = Some(phys);
    }

    /// Sets the serial number.
    pub fn set_uniq(&mut self, uniq: CString) {
        self.names.uniq = Some(uniq);
    }

    /// Sets the ids.
    pub fn set_id(&mut self, id: Id) {
        let raw = bindings::input_id {
            bustype: id.bustype,
            vendor: id.vendor,
            product: id.product,
            version: id.version,
        };
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it.
        unsafe { (*self.dev.as_ptr()).id = raw };
    }

    /// Adds properties, `INPUT_PROP_*`: the first byte has bits 0 to 7. Those that do not exist are
    /// left out.
    pub fn add_properties(&mut self, properties: &[u8]) {
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it.
        let bitmap = unsafe { &mut (*self.dev.as_ptr()).propbit };
        set_bits(bitmap, bindings::INPUT_PROP_CNT, properties);
    }

    /// Returns the codes of a type of events.
    fn codes(&mut self, kind: u16) -> Result<(&mut [c_ulong], u32)> {
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it. No other
        // reference to the fields is there, since `self` is borrowed exclusively.
        let found: (&mut [c_ulong], u32) = unsafe {
            let dev = self.dev.as_ptr();
            match kind {
                EV_KEY => (&mut (*dev).keybit, bindings::KEY_CNT),
                EV_REL => (&mut (*dev).relbit, bindings::REL_CNT),
                EV_ABS => (&mut (*dev).absbit, bindings::ABS_CNT),
                EV_MSC => (&mut (*dev).mscbit, bindings::MSC_CNT),
                EV_SW => (&mut (*dev).swbit, bindings::SW_CNT),
                EV_LED => (&mut (*dev).ledbit, bindings::LED_CNT),
                EV_SND => (&mut (*dev).sndbit, bindings::SND_CNT),
                _ => return Err(EINVAL),
            }
        };
        Ok(found)
    }

    /// Adds a type of events, one of `EV_*`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it is another one: force feedback, for example, needs more than that.
    pub fn add_type(&mut self, kind: u16) -> Result {
        if !matches!(
            kind,
            EV_KEY | EV_REL | EV_ABS | EV_MSC | EV_SW | EV_LED | EV_SND | EV_REP
        ) {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it.
        let bitmap = unsafe { &mut (*self.dev.as_ptr()).evbit };
        set_bit(bitmap, usize::from(kind));
        Ok(())
    }

    /// Adds a type of events, and codes of it: the first byte has bits 0 to 7. Those that do not
    /// exist are left out.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such type, or it has no codes to be added.
    pub fn add_codes(&mut self, kind: u16, codes: &[u8]) -> Result {
        let (bitmap, count) = self.codes(kind)?;
        set_bits(bitmap, count, codes);
        self.add_type(kind)
    }

    /// Sets what values an axis can have, and adds it. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such axis, [`ENOMEM`] if memory is short.
    pub fn set_abs(&mut self, axis: usize, info: AbsInfo) -> Result {
        if axis >= ABS_CNT {
            return Err(EINVAL);
        }
        let dev = self.dev.as_ptr();
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it. There is
        // such an axis. The array has an element for each, if it could be allocated.
        unsafe {
            bindings::input_set_abs_params(
                dev,
                // CAST: Less than `ABS_CNT`.
                axis as c_uint,
                info.minimum,
                info.maximum,
                info.fuzz,
                info.flat,
            );
            let infos = (*dev).absinfo;
            if infos.is_null() {
                return Err(ENOMEM);
            }
            (*infos.add(axis)).resolution = info.resolution;
        }
        Ok(())
    }

    /// Has the device tell of so many contacts at a time by [`ABS_MT_SLOT`]; 0 is none. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are too many, [`ENOMEM`] if memory is short.
    pub fn init_slots(&mut self, slots: u32) -> Result {
        // SAFETY: By the type invariants the pointer is valid, and nobody else uses it.
        to_result(unsafe { bindings::input_mt_init_slots(self.dev.as_ptr(), slots, 0) })?;
        self.slots = slots;
        Ok(())
    }

    /// Registers the device, until `parent` is unbound or what is returned is dropped. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are axes, but what values they can have is not known of any, [`ENOMEM`]
    /// if memory is short, [`EINTR`] if there is a signal.
    pub fn register<T: Handler>(
        self,
        parent: &Device<Bound>,
        handler: Arc<T>,
    ) -> Result<Devres<Registration<T>>> {
        Devres::new(parent, Registration::new(self, parent, handler)?)
    }
}

impl Drop for Builder {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the device is not registered.
        unsafe { bindings::input_free_device(self.dev.as_ptr()) };
    }
}

/// Sets a bit, if there is one.
fn set_bit(bitmap: &mut [c_ulong], bit: usize) {
    const BITS: usize = c_ulong::BITS as usize;
    if let Some(word) = bitmap.get_mut(bit / BITS) {
        *word |= 1 << (bit % BITS);
    }
}

/// Sets the first `count` bits that are set in `bytes`.
fn set_bits(bitmap: &mut [c_ulong], count: u32, bytes: &[u8]) {
    // CAST: From 32 bits to at least as many.
    for bit in 0..count as usize {
        if bytes
            .get(bit / 8)
            .is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
        {
            set_bit(bitmap, bit);
        }
    }
}

/// The registration of an input device.
///
/// A driver has one as a managed resource of the parent only, and nothing depends on that being
/// dropped: it is undone when the parent is unbound. From then on no event is reported, and the
/// handler not called.
///
/// # Invariants
///
/// `dev` is registered, and its driver data is `handler`, an `Arc<T>` as a foreign pointer, which
/// this owns.
pub struct Registration<T: Handler> {
    dev: NonNull<bindings::input_dev>,
    handler: NonNull<c_void>,
    slots: u32,
    _names: Names,
    _handler: PhantomData<Arc<T>>,
}

// SAFETY: The registration can be undone in any thread, and so can the handler be dropped.
unsafe impl<T: Handler> Send for Registration<T> {}

// SAFETY: What can be done with a shared reference, the core of the input devices synchronises.
unsafe impl<T: Handler> Sync for Registration<T> {}

impl<T: Handler> Registration<T> {
    /// See [`Builder::register`].
    fn new(builder: Builder, parent: &Device<Bound>, handler: Arc<T>) -> Result<Self> {
        let dev = builder.dev.as_ptr();
        let names = &builder.names;
        let ptr = |name: &Option<CString>| name.as_ref().map_or(null(), |n| n.as_char_ptr());
        let parent: *const Device<Bound> = parent;

        // A transparent wrapper of a `struct device`, of which `as_raw` is the kernel crate's own.
        let parent = parent.cast::<bindings::device>().cast_mut();
        let handler = handler.into_foreign();
        // SAFETY:
        // - By the type invariants of `Builder` the pointer is valid, and nobody else uses it.
        // - The names stay until the device is unregistered: moving a `CString` doesn't move its
        //   characters. Nobody looks at them after that.
        // - The parent is valid, and from the registration on the device holds a reference to it.
        unsafe {
            (*dev).name = ptr(&names.name);
            (*dev).phys = ptr(&names.phys);
            (*dev).uniq = ptr(&names.uniq);
            (*dev).dev.parent = parent;
            (*dev).dev.driver_data = handler.cast();
            (*dev).event = Some(Self::event_callback);
        }
        // SAFETY: As above, and the context may sleep.
        to_result(unsafe { bindings::input_register_device(dev) }).inspect_err(|_| {
            // SAFETY: The pointer comes from `into_foreign` above. A device that could not be
            // registered calls nobody.
            drop(unsafe { Arc::<T>::from_foreign(handler) });
        })?;

        let mut builder = core::mem::ManuallyDrop::new(builder);
        // INVARIANT: The device has been registered right above, and is not freed by the builder.
        Ok(Self {
            dev: builder.dev,
            // SAFETY: An `Arc` never is a null pointer.
            handler: unsafe { NonNull::new_unchecked(handler.cast()) },
            slots: builder.slots,
            _names: core::mem::take(&mut builder.names),
            _handler: PhantomData,
        })
    }

    /// Reports an event. Any context.
    ///
    /// One that the device is not known to be able to have is left out. Programs see what has been
    /// reported when an `EV_SYN` event follows.
    #[inline]
    pub fn report(&self, event: Event) {
        // SAFETY: By the type invariants the device is registered. The core checks type and code.
        unsafe {
            bindings::input_event(
                self.dev.as_ptr(),
                event.kind.into(),
                event.code.into(),
                event.value,
            );
        }
    }

    /// The device has been reset: releases all keys and contacts, and has lights, sounds and the
    /// like set as they were. May sleep.
    pub fn reset(&self) {
        // SAFETY: By the type invariants the device is registered.
        unsafe { bindings::input_reset_device(self.dev.as_ptr()) };

        // The core leaves contacts alone. The first is the last, which the next events of the
        // device are about.
        let report = |kind, code, value| self.report(Event { kind, code, value });
        // CAST: There are 1024 slots at most, and 64 axes.
        for slot in (0..self.slots as i32).rev() {
            report(EV_ABS, ABS_MT_SLOT as u16, slot);
            report(EV_ABS, ABS_MT_TRACKING_ID, -1);
        }
        report(EV_SYN, SYN_REPORT, 0);
    }

    unsafe extern "C" fn event_callback(
        dev: *mut bindings::input_dev,
        kind: c_uint,
        code: c_uint,
        value: c_int,
    ) -> c_int {
        // SAFETY: The core calls this for a registered device, and not any more when
        // `input_unregister_device` has returned: by the type invariants the driver data comes from
        // `Arc::into_foreign`, and is not taken back before that.
        let handler = unsafe { Arc::<T>::borrow((*dev).dev.driver_data.cast()) };
        let event = Event {
            // CAST: The core has checked that there is such a type, and such a code.
            kind: kind as u16,
            code: code as u16,
            value,
        };
        from_result(|| T::event(handler, event).map(|()| 0))
    }
}

impl<T: Handler> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the device is registered.
        unsafe { bindings::input_unregister_device(self.dev.as_ptr()) };
        // SAFETY: By the type invariants the pointer comes from `into_foreign`. Nobody uses it any
        // more: the core has disconnected all who could have made events for the device.
        drop(unsafe { Arc::<T>::from_foreign(self.handler.as_ptr().cast()) });
    }
}
