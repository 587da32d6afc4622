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
        ModuleParam,
        ModuleParamAccess,
        PARAM_OPS_BOOL,
        PARAM_OPS_U32, //
    },
    page::PAGE_SIZE,
    prelude::*,
    str::Formatter, //
};

/// A type that a module parameter can have.
#[doc(hidden)]
pub trait Parameter: ModuleParam + 'static {
    /// Sets and shows one of this type.
    const OPS: &'static kernel_param_ops;

    /// Writes the value as C's parameters of the type are shown.
    fn show(self, f: &mut Formatter<'_>) -> Result;
}

static BOOL: kernel_param_ops = kernel_param_ops {
    get: Some(get::<bool>),
    ..PARAM_OPS_BOOL
};

static U32: kernel_param_ops = kernel_param_ops {
    get: Some(get::<u32>),
    ..PARAM_OPS_U32
};

impl Parameter for bool {
    const OPS: &'static kernel_param_ops = &BOOL;

    fn show(self, f: &mut Formatter<'_>) -> Result {
        Ok(f.write_str(if self { "Y\n" } else { "N\n" })?)
    }
}

impl Parameter for u32 {
    const OPS: &'static kernel_param_ops = &U32;

    fn show(self, f: &mut Formatter<'_>) -> Result {
        Ok(f.write_fmt(fmt!("{self}\n"))?)
    }
}

/// Shows a parameter, see `struct kernel_param_ops`.
///
/// # Safety
///
/// `buf` must be valid for writing a page, and `param` be one that [`readable`] has made.
unsafe extern "C" fn get<T: Parameter>(buf: *mut c_char, param: *const kernel_param) -> c_int {
    // SAFETY: By the safety requirements the argument is a parameter of this type, which is a
    // static.
    let access = unsafe { &*(*param).__bindgen_anon_1.arg.cast::<ModuleParamAccess<T>>() };
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
    access: &'static ModuleParamAccess<T>,
) -> KernelParam {
    KernelParam::new(kernel_param {
        name: kernel::str::as_char_ptr_in_const_context(name),
        mod_: (&raw const kernel::bindings::__this_module).cast_mut(),
        ops: T::OPS,
        perm: 0o444,
        level: -1,
        flags: 0,
        __bindgen_anon_1: kernel_param__bindgen_ty_1 {
            arg: access.as_void_ptr(),
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
/// loaded, and shown in `/sys/module/*/parameters`. The types are `bool` and `u32`.
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
            $(
                #[allow(non_upper_case_globals)]
                pub(crate) static $name: ::kernel::module_param::ModuleParamAccess<$ty> =
                    ::kernel::module_param::ModuleParamAccess::new($default);

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
