//! Who says where the broker is means that broker: no other store is looked into for it.

use std::process::Command;

const VERBS: [&str; 4] = ["status", "leases", "history", "usage"];

/// What comes of it: the code, the output, and what is said.
fn ran(args: &[&str], url: Option<&str>) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gpu-manager"));
    program.args(args).env_remove("GPU_MANAGER_URL");
    program.envs(url.map(|url| ("GPU_MANAGER_URL", url)));
    let output = program.output().expect("the program can be started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn for_a_stated_broker_the_store_of_the_usual_place_is_not_read() {
    let nowhere = "unix:/nowhere/at/all.sock";
    for verb in VERBS {
        let by_variable = ran(&[verb], Some(nowhere));
        let by_flag = ran(&[verb, "--url", nowhere], None);
        for (code, stdout, stderr) in [by_variable, by_flag] {
            assert_eq!((code, stdout.as_str()), (Some(3), ""), "{stderr}");
            assert!(stderr.contains("no store was read"), "{stderr}");
            assert!(stderr.contains("`--state-dir DIR`"), "{stderr}");
            for part in ["/var/lib", "GPU_MANAGER_URL"] {
                assert!(!stderr.contains(part), "{part}: {stderr}");
            }
        }
    }
}

#[test]
fn the_hint_names_what_was_not_said_yet() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let dir = dir.path().to_str().expect("a path of text");
    for verb in VERBS {
        let url = Some("unix:/nowhere/at/all.sock");
        let (code, _, stderr) = ran(&[verb, "--state-dir", dir], url);
        assert_eq!(code, Some(3), "{stderr}");
        assert!(stderr.contains("there is no store"), "{stderr}");
        assert!(stderr.contains("say where its state is"), "{stderr}");
        assert!(!stderr.contains("GPU_MANAGER_URL"), "{stderr}");
    }
}
