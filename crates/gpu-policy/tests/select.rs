//! Selections of devices, as clients write them.

use gpu_lease::{DeviceId, Select};
use gpu_policy::{SELECT_BYTES_MAX, SELECT_IDS_MAX, parse_select};

#[test]
fn devices_by_id_need_no_expression() {
    for (text, ids) in [
        ("device.id == 'GPU-1'", vec!["GPU-1"]),
        (
            "  device.id==\"pci-0000:65:00.0\" ",
            vec!["pci-0000:65:00.0"],
        ),
        ("device.id in ['a', \"b\"]", vec!["a", "b"]),
        ("device.id in['a','b',]", vec!["a", "b"]),
    ] {
        let ids = ids.into_iter().map(DeviceId::new).collect();
        assert_eq!(parse_select(text), Ok(Select::ids(ids)), "{text}");
    }
}

#[test]
fn everything_else_over_a_device_is_a_filter() {
    for text in [
        "device.id != 'GPU-1'",
        "device.id == 'a' || device.id == 'b'",
        "device.name.contains('A100') && device.memory >= GiB(40)",
        "'fast' in device.labels",
        "device.labels.exists(x, x.startsWith('rack-'))",
        "!(device.vendor in ['intel', 'other']) && device.kind == 'discrete'",
        "device.host == 'node1' && device.index < 4 && device.driver != ''",
    ] {
        let expected = Select {
            ids: None,
            filters: vec![text.to_owned()],
        };
        assert_eq!(parse_select(text), Ok(expected), "{text}");
    }
}

/// (text, the message, where it points, the hint)
#[test]
fn what_is_wrong_is_said_where_it_is() {
    let many = format!("device.id in [{}]", "'x',".repeat(SELECT_IDS_MAX + 1));
    let long = " ".repeat(SELECT_BYTES_MAX + 1);
    for (text, message, column, hint) in [
        ("", "the expression is empty", 1, ""),
        ("device.id in []", "the selection names no device", 1, ""),
        ("device.id == 'a b'", "`a b` is no device id", 15, ""),
        (&many, "the selection names more than 64 devices", 1, ""),
        (&long, "the expression is longer than 2048 bytes", 1, ""),
        ("device.id == 'x", "the string is not closed", 14, ""),
        ("device.id in ['x'] y", "`y` is not expected here", 20, ""),
        (
            "device.memory > '40GiB'",
            "`>` cannot compare an int with text",
            15,
            "sizes are written `GiB(40)`",
        ),
        (
            "device.memory > 40GiB",
            "`40GiB` is no number",
            17,
            "sizes are written `GiB(40)`",
        ),
        (
            "device.nam == 'x'",
            "there is no `device.nam`",
            1,
            "did you mean `device.name`?",
        ),
        (
            "device.name",
            "a selection of devices must say true or false, this is text",
            1,
            "compare it: `== '...'`",
        ),
        (
            "'é' == 'é' && devise.id == 'x'",
            "there is no `devise`",
            15,
            "did you mean `device`?",
        ),
        (
            "'ööööööööö' == 'ö' && devise.id == 'x'",
            "there is no `devise`",
            23,
            "did you mean `device`?",
        ),
        (
            "'ööööööööö' == 'ö' y == 'x'",
            "`y` is not expected here",
            20,
            "",
        ),
        ("'ööööööööö' ==\n'ö' y", "`y` is not expected here", 20, ""),
        (
            "device.free > GiB(1)",
            "a selection of devices does not see `device.free`",
            1,
            "only a score sees it",
        ),
        (
            "request.class == 'x'",
            "a selection of devices does not see `request`",
            1,
            "it sees `device`",
        ),
        (
            "device.id = 'x'",
            "`=` has no meaning here",
            11,
            "write `==` to compare",
        ),
    ] {
        let error = parse_select(text).expect_err(text);
        let found = (
            error.message.as_str(),
            error.column,
            error.hint.as_deref().unwrap_or_default(),
        );
        assert_eq!(found, (message, column, hint), "{text}");
    }
}

#[test]
fn an_error_is_one_line_for_people() {
    let error = parse_select("device.nam == 'x'").expect_err("a typo");
    assert_eq!(
        error.to_string(),
        "there is no `device.nam` (column 1); did you mean `device.name`?"
    );
}
