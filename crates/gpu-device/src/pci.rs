//! PCI addresses in one spelling, whatever spelling a driver uses.

use std::fmt;

/// Domain, bus, device and function; sorts as `CUDA_DEVICE_ORDER=PCI_BUS_ID` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Reads `0000:65:00.0` and NVML's `00000000:65:00.0`, in either case of letters.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.trim().rsplit_once('.')?;
        let mut parts = rest.split(':');
        let address = Self {
            domain: u32::from_str_radix(parts.next()?, 16).ok()?,
            bus: u8::from_str_radix(parts.next()?, 16).ok()?,
            device: u8::from_str_radix(parts.next()?, 16).ok()?,
            function: u8::from_str_radix(function, 16).ok()?,
        };
        let in_range = address.device < 32 && address.function < 8;
        (parts.next().is_none() && in_range).then_some(address)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            domain,
            bus,
            device,
            function,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_becomes_one() {
        for (text, address) in [
            ("0000:65:00.0", Some("0000:65:00.0")),
            ("00000000:65:00.0", Some("0000:65:00.0")),
            ("00010000:AF:1F.7", Some("10000:af:1f.7")),
            ("", None),
            ("65:00.0", None),
            ("0000:65:20.0", None),
            ("0000:65:00.8", None),
            ("0000:165:00.0", None),
            ("0000:65:00:00.0", None),
        ] {
            let parsed = PciAddress::parse(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), address, "{text}");
        }
    }
}
