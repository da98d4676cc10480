//! Which device a person means.

use std::collections::BTreeSet;

use gpu_api::Device;
use gpu_client::ClientError;

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
    let devices = devices(context).await?;
    texts.iter().map(|text| resolve(&devices, text)).collect()
}

/// The devices of a broker that knows them: one that has not looked, or does not look, has none to name.
pub(crate) async fn devices(context: &Context) -> Result<Vec<Device>, ClientError> {
    let devices = context.client.devices().await?;
    if devices.is_empty() {
        context.client.ready_to_grant().await?;
    }
    Ok(devices)
}

/// The id of the device of `devices` that `text` names: an id, an index, or the beginning of one id.
pub(crate) fn resolve(devices: &[Device], text: &str) -> Result<String, Failure> {
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

/// The id that `text` names among the `ids` that a store knows, which has no indices: an id, or the beginning of
/// one.
pub(crate) fn stored_device(ids: &BTreeSet<String>, text: &str) -> Result<String, Failure> {
    if ids.contains(text) {
        return Ok(text.to_owned());
    }
    let long_enough = text.chars().count() >= PREFIX_CHARS_MIN;
    let mut beginning = ids.iter().filter(|id| long_enough && id.starts_with(text));
    match (beginning.next(), beginning.next()) {
        (Some(id), None) => Ok(id.clone()),
        _ => Err(not_stored(ids, text)),
    }
}

fn not_stored(ids: &BTreeSet<String>, text: &str) -> Failure {
    let failure = Failure::usage(format!(
        "no event of the store is about one device `{text}`"
    ));
    let known: Vec<&str> = ids.iter().map(String::as_str).collect();
    match known.is_empty() {
        true => failure.hint("no event is about a device"),
        false => failure.hint(format!(
            "without a broker a device is named by its id or its first {PREFIX_CHARS_MIN} characters or more, not its index; there are {}",
            known.join(", ")
        )),
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

    #[test]
    fn a_device_of_a_store_is_named_by_its_id_or_the_beginning() {
        let ids = ["GPU-aaaa1111", "GPU-bbbb2222"];
        let ids: BTreeSet<String> = ids.map(str::to_owned).into();
        let stored = |text: &str| stored_device(&ids, text).ok();
        assert_eq!(stored("GPU-aaaa1111"), Some("GPU-aaaa1111".to_owned()));
        assert_eq!(stored("GPU-b"), Some("GPU-bbbb2222".to_owned()));
        for none in ["0", "GPU-", "GP", "sim-0"] {
            assert_eq!(stored(none), None, "{none}");
        }
    }
}
