// SPDX-License-Identifier: GPL-2.0

//! Module parameters that are shown in sysfs.
//!
//! Those of `kernel::module!` have mode 0, and no function that shows them. Upstream this would be
//! a field of that macro.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use kernel::{
    bindings::{
        kernel_param,
        kernel_param__bindgen_ty_1,
        kernel_param_ops, //
    },
    error::from_result,
    fmt::Write as _,
    module_param::{
        KernelParam,
        ModuleParam, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::{
        kstrtobool,
        Formatter, //
    },
    sync::SetOnce, //
};

/// A type that a module parameter can have.
#[doc(hidden)]
pub trait Parameter: Copy + 'static {
    /// Sets and shows one of this type.
    const OPS: &'static kernel_param_ops;

    /// Reads the value from what the module was loaded with.
    fn parse(text: &CStr) -> Result<Self>;

    /// Writes the value as C's parameters of the type are shown.
    fn show(self, f: &mut Formatter<'_>) -> Result;
}

/// The value of a parameter. Upstream it would be `kernel::module_param::ModuleParamAccess`.
#[doc(hidden)]
pub struct Access<T> {
    value: SetOnce<T>,
    default: T,
}

impl<T: Parameter> Access<T> {
    #[doc(hidden)]
    pub const fn new(default: T) -> Self {
        Self {
            value: SetOnce::new(),
            default,
        }
    }

    /// Returns the value that was given when the module was loaded, or the default.
    pub fn value(&self) -> T {
        self.value.copy().unwrap_or(self.default)
    }

    /// As above.
    pub fn value_ref(&self) -> &T {
        self.value.as_ref().unwrap_or(&self.default)
    }
}

/// The operations of a type of parameters.
const fn ops<T: Parameter>() -> kernel_param_ops {
    kernel_param_ops {
        flags: 0,
        set: Some(set::<T>),
        get: Some(get::<T>),
        free: None,
    }
}

static BOOL: kernel_param_ops = ops::<bool>();

static U32: kernel_param_ops = ops::<u32>();

static WORD: kernel_param_ops = ops::<Word>();

/// How many bytes a word can have.
const WORD_BYTES: usize = 32;

/// A word: a name, or one of several.
#[derive(Clone, Copy)]
pub struct Word {
    bytes: [u8; WORD_BYTES],
    len: usize,
}

impl Word {
    /// Makes a word of at most 32 bytes.
    pub const fn new(text: &str) -> Self {
        assert!(text.len() <= WORD_BYTES);
        let text = text.as_bytes();
        let mut word = Self {
            bytes: [0; WORD_BYTES],
            len: text.len(),
        };
        let mut i = 0;
        while i < text.len() {
            word.bytes[i] = text[i];
            i += 1;
        }
        word
    }

    /// Returns the word.
    pub fn as_str(&self) -> &str {
        // It was UTF-8 when the word was made.
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl Parameter for Word {
    const OPS: &'static kernel_param_ops = &WORD;

    /// # Errors
    ///
    /// [`EINVAL`] if it is too long, or not UTF-8.
    fn parse(text: &CStr) -> Result<Self> {
        match core::str::from_utf8(text.to_bytes()) {
            Ok(text) if text.len() <= WORD_BYTES => Ok(Self::new(text)),
            _ => Err(EINVAL),
        }
    }

    fn show(self, f: &mut Formatter<'_>) -> Result {
        Ok(f.write_fmt(fmt!("{}\n", self.as_str()))?)
    }
}

impl Parameter for bool {
    const OPS: &'static kernel_param_ops = &BOOL;

    fn parse(text: &CStr) -> Result<Self> {
        kstrtobool(text)
    }

    fn show(self, f: &mut Formatter<'_>) -> Result {
        Ok(f.write_str(if self { "Y\n" } else { "N\n" })?)
    }
}

impl Parameter for u32 {
    const OPS: &'static kernel_param_ops = &U32;

    fn parse(text: &CStr) -> Result<Self> {
        Self::try_from_param_arg(text.as_ref())
    }

    fn show(self, f: &mut Formatter<'_>) -> Result {
        Ok(f.write_fmt(fmt!("{self}\n"))?)
    }
}

/// Sets a parameter, see `struct kernel_param_ops`. A parameter is set once.
///
/// # Safety
///
/// `val` must be null or a string, and `param` be one that [`readable`] has made.
unsafe extern "C" fn set<T: Parameter>(val: *const c_char, param: *const kernel_param) -> c_int {
    // SAFETY: By the safety requirements the argument is a parameter of this type, which is a
    // static.
    let access = unsafe { &*(*param).__bindgen_anon_1.arg.cast::<Access<T>>() };

    from_result(|| {
        if val.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: By the safety requirements.
        let text = unsafe { CStr::from_char_ptr(val) };
        match access.value.populate(T::parse(text)?) {
            true => Ok(0),
            false => Err(EEXIST),
        }
    })
}

/// Shows a parameter, see `struct kernel_param_ops`.
///
/// # Safety
///
/// `buf` must be valid for writing a page, and `param` be one that [`readable`] has made.
unsafe extern "C" fn get<T: Parameter>(buf: *mut c_char, param: *const kernel_param) -> c_int {
    // SAFETY: By the safety requirements the argument is a parameter of this type, which is a
    // static.
    let access = unsafe { &*(*param).__bindgen_anon_1.arg.cast::<Access<T>>() };
    // SAFETY: By the safety requirements, and nobody else uses the page.
    let page = unsafe { core::slice::from_raw_parts_mut(buf.cast::<u8>(), PAGE_SIZE) };
    let mut f = Formatter::new(page);

    // CAST: A few bytes.
    from_result(|| {
        access
            .value()
            .show(&mut f)
            .map(|()| f.bytes_written() as c_int)
    })
}

/// Makes the parameter that the module loader looks at, with mode 0444.
#[doc(hidden)]
pub const fn readable<T: Parameter>(
    name: &'static CStr,
    access: &'static Access<T>,
) -> KernelParam {
    KernelParam::new(kernel_param {
        name: kernel::str::as_char_ptr_in_const_context(name),
        mod_: (&raw const kernel::bindings::__this_module).cast_mut(),
        ops: T::OPS,
        perm: 0o444,
        level: -1,
        flags: 0,
        __bindgen_anon_1: kernel_param__bindgen_ty_1 {
            arg: core::ptr::from_ref(access).cast_mut().cast(),
        },
    })
}

/// Makes an array of a string, which is as long.
#[doc(hidden)]
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let text = text.as_bytes();
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = text[i];
        i += 1;
    }
    bytes
}

/// Defines the parameters of a loadable module, beside [`module!`](kernel::prelude::module).
///
/// They are in the module `parameters`, read by `value` or `value_ref`, set when the module is
/// loaded, and shown in `/sys/module/*/parameters`. The types are `bool`, `u32` and
/// [`Word`](crate::parameter::Word).
///
/// # Examples
///
/// ```
/// virtio::module_parameters! {
///     depth: u32 {
///         default: 0,
///         description: "The depth",
///     },
/// }
///
/// fn depth() -> u32 {
///     parameters::depth.value()
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! module_parameters {
    ($($name:ident: $ty:ident {
        default: $default:expr,
        description: $description:literal $(,)?
    }),* $(,)?) => {
        mod parameters {
            #[allow(unused_imports)]
            use $crate::parameter::Word;

            $(
                #[allow(non_upper_case_globals)]
                pub(crate) static $name: $crate::parameter::Access<$ty> =
                    $crate::parameter::Access::new($default);

                const _: () = {
                    #[link_section = "__param"]
                    #[used(compiler)]
                    static PARAM: ::kernel::module_param::KernelParam =
                        $crate::parameter::readable(
                            ::kernel::c_str!(::core::stringify!($name)),
                            &$name,
                        );

                    const TYPE: &str = ::core::concat!(
                        "parmtype=", ::core::stringify!($name), ":", ::core::stringify!($ty), "\0"
                    );
                    #[link_section = ".modinfo"]
                    #[used(compiler)]
                    static TYPE_INFO: [u8; TYPE.len()] = $crate::parameter::bytes(TYPE);

                    const TEXT: &str = ::core::concat!(
                        "parm=", ::core::stringify!($name), ":", $description, "\0"
                    );
                    #[link_section = ".modinfo"]
                    #[used(compiler)]
                    static TEXT_INFO: [u8; TEXT.len()] = $crate::parameter::bytes(TEXT);
                };
            )*
        }
    };
}
