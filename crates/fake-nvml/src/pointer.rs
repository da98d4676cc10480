//! What callers hand in by pointer. All reading and writing of foreign memory is here.

use std::ffi::{CStr, c_char, c_uint};
use std::mem::MaybeUninit;

use crate::abi::Code;

/// Room for one value, or null: the layout of a C pointer to `T`.
pub(crate) type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Puts `value` where the caller asked for it.
pub(crate) fn put<T>(out: Out<'_, T>, value: T) -> Result<(), Code> {
    out.ok_or(Code::INVALID_ARGUMENT)?.write(value);
    Ok(())
}

/// A reading that the file may leave out.
pub(crate) fn put_if_known<T>(out: Out<'_, T>, value: Option<T>) -> Result<(), Code> {
    put(out, value.ok_or(Code::NOT_SUPPORTED)?)
}

/// Room for several values: the layout of a C pointer, whose length comes as another argument.
#[repr(transparent)]
pub(crate) struct Buffer<T>(*mut T);

impl<T> Buffer<T> {
    /// The room as a slice; `None` where the caller has none.
    ///
    /// # Safety
    /// The caller of the C function vouches for `len` writable elements, as NVML demands.
    pub(crate) unsafe fn room<'a>(self, len: c_uint) -> Option<&'a mut [MaybeUninit<T>]> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: not null; the rest is the contract of this function, and `MaybeUninit<T>` may hold
        // anything.
        Some(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), len as usize) })
    }
}

/// Writes `text` and a zero byte, if they fit.
pub(crate) fn put_text(room: Option<&mut [MaybeUninit<c_char>]>, text: &str) -> Result<(), Code> {
    let room = room.ok_or(Code::INVALID_ARGUMENT)?;
    if room.len() <= text.len() {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    let bytes = text.bytes().chain([0]);
    for (place, byte) in room.iter_mut().zip(bytes) {
        place.write(byte as c_char);
    }
    Ok(())
}

/// Text as a C array of fixed size, cut to leave room for the zero byte.
pub(crate) fn text_array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    for (place, byte) in array[..N - 1].iter_mut().zip(text.bytes()) {
        *place = byte as c_char;
    }
    array
}

/// A C string that the caller hands in, or null.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    /// The text; an error for null or what is not UTF-8.
    ///
    /// # Safety
    /// The caller of the C function vouches for a string that ends in a zero byte.
    pub(crate) unsafe fn read<'a>(self) -> Result<&'a str, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null; the rest is the contract of this function.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| Code::INVALID_ARGUMENT)
    }
}
