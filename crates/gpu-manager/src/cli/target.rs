//! Which device a person means.

use gpu_api::Device;

use crate::cli::context::Context;
use crate::cli::exit::Failure;

const PREFIX_CHARS_MIN: usize = 4;

/// The id of the device that `text` names: an id, an index, or the beginning of one id.
pub(crate) async fn device_id(context: &Context, text: &str) -> Result<String, Failure> {
    let ids = device_ids(context, &[text.to_owned()]).await?;
    ids.into_iter()
        .next()
        .ok_or_else(|| Failure::usage(format!("`{text}` names no device")))
}

/// The ids of the devices that `texts` name.
pub(crate) async fn device_ids(
    context: &Context,
    texts: &[String],
) -> Result<Vec<String>, Failure> {
    let devices = context.client.devices().await?;
    texts.iter().map(|text| resolve(&devices, text)).collect()
}

fn resolve(devices: &[Device], text: &str) -> Result<String, Failure> {
    if devices.iter().any(|device| device.id == text) {
        return Ok(text.to_owned());
    }
    if let Ok(index) = text.parse::<u32>() {
        let found = devices.iter().find(|device| device.index == index);
        return found
            .map(|device| device.id.clone())
            .ok_or_else(|| unknown(devices, text));
    }
    let long_enough = text.chars().count() >= PREFIX_CHARS_MIN;
    let mut beginning = devices
        .iter()
        .filter(|device| long_enough && device.id.starts_with(text));
    match (beginning.next(), beginning.next()) {
        (Some(device), None) => Ok(device.id.clone()),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "more than one device begins with `{text}`"
        ))),
        (None, _) => Err(unknown(devices, text)),
    }
}

fn unknown(devices: &[Device], text: &str) -> Failure {
    let known: Vec<String> = devices
        .iter()
        .map(|device| format!("{} ({})", device.index, device.id))
        .collect();
    let failure = Failure::usage(format!("there is no device `{text}`"));
    match known.is_empty() {
        true => failure.hint("the broker has no devices"),
        false => failure.hint(format!("the devices are {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::show::example;

    #[test]
    fn a_device_is_named_in_three_ways() {
        let devices = [
            example::device(0, "GPU-aaaa1111"),
            example::device(1, "GPU-bbbb2222"),
            example::device(2, "7"),
        ];
        let resolve = |text: &str| resolve(&devices, text).ok();
        assert_eq!(resolve("GPU-aaaa1111"), Some("GPU-aaaa1111".to_owned()));
        assert_eq!(resolve("1"), Some("GPU-bbbb2222".to_owned()));
        assert_eq!(
            resolve("7"),
            Some("7".to_owned()),
            "an id goes before an index"
        );
        assert_eq!(resolve("GPU-b"), Some("GPU-bbbb2222".to_owned()));
        assert_eq!(resolve("GPU-"), None, "two begin with it");
        assert_eq!(resolve("GP"), None, "too short");
        assert_eq!(resolve("9"), None);
    }
}
