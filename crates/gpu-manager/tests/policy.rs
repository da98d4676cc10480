//! The verbs of policies against a broker that answers what each test tells it to.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// What is answered, by `METHOD /path`: each time the next, the last for ever.
type Answers = Vec<(&'static str, u16, Value)>;

/// A request: method and path, `If-Match` if there is one, and the body.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    line: String,
    if_match: Option<String>,
    body: Value,
}

struct Broker {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Broker {
    fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                serve(&stream, &answers, &seen);
            }
        });
        Self { url, asked }
    }

    /// Runs the program with `input` on its standard input.
    fn run(&self, args: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gpu-manager"))
            .args(args)
            .env("GPU_MANAGER_URL", &self.url)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A program that does not read its input is none the worse.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    }

    /// What was asked under `line`.
    fn asked(&self, line: &str) -> Vec<Asked> {
        let asked = self
            .asked
            .lock()
            .expect("no test panics while it holds this");
        let asked = asked.iter().filter(|asked| asked.line == line);
        asked.cloned().collect()
    }
}

/// One request; the connection is closed behind the answer.
fn serve(
    mut stream: &TcpStream,
    answers: &Mutex<VecDeque<(&str, u16, Value)>>,
    seen: &Mutex<Vec<Asked>>,
) {
    let Some(asked) = read(&mut BufReader::new(stream)) else {
        return;
    };
    let line = asked.line.clone();
    seen.lock()
        .expect("no test panics while it holds this")
        .push(asked);
    let (status, body) = answer(&mut answers.lock().expect("only this thread"), &line);
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // A client that is gone has heard enough.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let line = line.rsplit_once(' ').map(|(line, _)| line.to_owned())?;
    let (mut if_match, mut length) = (None, 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        match name.to_lowercase().as_str() {
            "if-match" => if_match = Some(value.to_owned()),
            "content-length" => length = value.parse().expect("a length"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    Some(Asked {
        line,
        if_match,
        body,
    })
}

fn answer(answers: &mut VecDeque<(&str, u16, Value)>, line: &str) -> (u16, Value) {
    let is_it = |(at, _, _): &(&str, u16, Value)| *at == line;
    let Some(place) = answers.iter().position(is_it) else {
        let problem = json!({
            "type": "urn:gpu-manager:not_found", "title": "", "status": 404, "code": "not_found",
            "detail": format!("nothing is answered to {line}"), "retryable": false,
        });
        return (404, problem);
    };
    let last = answers.iter().filter(|answer| is_it(answer)).count() == 1;
    let (_, status, body) = match last {
        true => answers[place].clone(),
        false => answers.remove(place).expect("just found"),
    };
    (status, body)
}

const PLAN: &str = "cafecafecafecafe";

fn fate(fate: &str) -> Value {
    json!({
        "lease": "l-1", "holder": "comfy", "fate": fate, "rule": "nights", "reason": "not by day",
        "deadline_at": null, "remaining_ms": null, "unenforceable": false,
    })
}

/// A plan of one change with these fates.
fn plan(leases: &[Value]) -> Value {
    json!({
        "ok": true, "hash": "bbbb", "plan": PLAN, "live": "aaaa", "generation": 4, "files": [],
        "changes": ["queue.order: fifo -> priority"], "leases": leases, "denied": [], "summary": "",
        "confirm_needed": !leases.is_empty(), "impossible": [], "diagnostics": [],
    })
}

fn broken_plan() -> Value {
    let mut plan = plan(&[]);
    plan["ok"] = json!(false);
    plan["diagnostics"] = json!([{
        "severity": "error", "file": "default.toml", "line": 1, "column": 1,
        "message": "unknown key `quue`", "hint": null,
    }]);
    plan
}

fn result(outcome: &str, trigger: &str, leases: &[Value]) -> Value {
    json!({
        "id": "7", "outcome": outcome, "summary": format!("it is {outcome}"), "trigger": trigger,
        "by": "ann", "at": "2026-01-01T00:00:00Z", "took_ms": 1,
        "phases": {"settle_us": null, "read_us": null, "compile_us": 1, "plan_us": 1, "apply_us": 1, "path": null},
        "generation": 5, "previous_generation": 4, "hash_before": "aaaa", "hash": "bbbb", "files": [],
        "changes": [], "leases": leases, "denied": [], "stale": [], "plan": PLAN, "attempt": 0,
        "diagnostics": [],
    })
}

fn status(policies: &Path) -> Value {
    json!({
        "service": "gpu-manager", "version": "0", "state": "serving", "dev": false, "pid": 1,
        "started_at": "2026-01-01T00:00:00Z", "uptime_ms": 1, "listen": [], "state_dir": null,
        "caller": "ann", "admin": true,
        "policy": {
            "generation": 4, "hash": "aaaa", "dirs": [policies], "watched": false, "disk": "pending",
            "error_state": null, "pending": PLAN,
        },
        "devices": 0, "devices_open": 0,
        "leases": {"waiting": 0, "active": 0, "draining": 0, "reclaiming": 0, "ended": 0},
        "tenants": [], "warnings": [],
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_plan_is_applied_only_with_consent() {
    let apply: &[&str] = &["policy", "apply"];
    let table: [(&[&str], bool, i32, bool); 5] = [
        // further arguments, leases are touched, exit code, it is loaded
        (&[], false, 0, true),
        (&[], true, 5, false),
        (&["--yes"], true, 0, true),
        (&["--expect-plan", "cafecafe"], true, 0, true),
        (&["--yes", "--json"], true, 0, true),
    ];
    for (further, touches, code, loaded) in table {
        let fates = if touches { vec![fate("drain")] } else { vec![] };
        let broker = Broker::start(vec![
            ("POST /v1/policy/plan", 200, plan(&fates)),
            ("POST /v1/hot-reload", 200, result("applied", "api", &fates)),
        ]);
        let output = broker.run(&[apply, further].concat(), "", &[]);
        assert_eq!(output.status.code(), Some(code), "{further:?} {output:?}");
        let loads = broker.asked("POST /v1/hot-reload");
        assert_eq!(loads.len(), usize::from(loaded), "{further:?}");
        for load in loads {
            // What was typed is for the broker to complete.
            let expected = further.get(1).filter(|_| further[0] == "--expect-plan");
            assert_eq!(load.body, json!({"expect_plan": expected.unwrap_or(&PLAN)}));
            assert_eq!(load.if_match.as_deref(), Some("\"aaaa\""));
        }
    }
}

#[test]
fn files_that_are_named_are_planned_and_sent_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["default.toml", "50-night.toml"] {
        fs::write(directory.path().join(name), format!("# {name}\n")).expect("writes");
    }
    let broker = Broker::start(vec![
        ("POST /v1/policy/plan", 200, plan(&[])),
        ("PUT /v1/policy", 200, result("applied", "api", &[])),
    ]);
    let path = directory.path().to_str().expect("plain text");
    let output = broker.run(&["policy", "apply", path], "", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let put = &broker.asked("PUT /v1/policy")[0];
    assert_eq!(
        put.body,
        json!({
            "files": [
                {"name": "default.toml", "text": "# default.toml\n"},
                {"name": "50-night.toml", "text": "# 50-night.toml\n"},
            ],
            "expect_plan": PLAN,
        })
    );
    assert_eq!(put.if_match.as_deref(), Some("\"aaaa\""));

    // Something else is on disk, and that is said before it is thrown away.
    let broker = Broker::start(vec![
        ("POST /v1/policy/plan", 200, plan(&[])),
        ("PUT /v1/policy", 412, result("moved", "api", &[])),
        ("PUT /v1/policy", 200, result("applied", "api", &[])),
    ]);
    let output = broker.run(&["policy", "apply", path], "", &[]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(text(&output.stderr).contains("--overwrite"), "{output:?}");
    let output = broker.run(&["policy", "apply", path, "--overwrite"], "", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let put = &broker.asked("PUT /v1/policy")[1];
    assert_eq!(put.if_match.as_deref(), Some("*"));
}

#[test]
fn what_becomes_of_a_load_is_an_exit_code() {
    for (outcome, status, code) in [
        ("applied", 200, 0),
        ("unchanged", 200, 0),
        ("rolled_back", 200, 0),
        ("running", 202, 0),
        ("failed", 422, 1),
        ("rejected", 422, 1),
        ("resting", 409, 1),
        ("needs_confirmation", 409, 5),
        ("moved", 412, 6),
    ] {
        let answer = result(outcome, "api", &[]);
        let broker = Broker::start(vec![("POST /v1/hot-reload", status, answer)]);
        let output = broker.run(&["reload"], "", &[]);
        assert_eq!(output.status.code(), Some(code), "{outcome}");
        assert!(text(&output.stdout).contains(outcome), "{output:?}");
    }
}

#[test]
fn a_rollback_that_touches_leases_is_sent_again_with_its_plan() {
    let waits = result("needs_confirmation", "rollback", &[fate("drain")]);
    let answers = || {
        vec![
            ("POST /v1/policy/rollback", 409, waits.clone()),
            (
                "POST /v1/policy/rollback",
                200,
                result("applied", "rollback", &[]),
            ),
        ]
    };
    let broker = Broker::start(answers());
    let output = broker.run(&["policy", "rollback", "3"], "", &[]);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(text(&output.stdout).contains("say --yes"), "{output:?}");

    let broker = Broker::start(answers());
    let output = broker.run(&["policy", "rollback", "3", "--yes"], "", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let bodies: Vec<Value> = broker
        .asked("POST /v1/policy/rollback")
        .into_iter()
        .map(|asked| asked.body)
        .collect();
    assert_eq!(
        bodies,
        [
            json!({"generation": 3}),
            json!({"generation": 3, "expect_plan": PLAN})
        ]
    );
}

#[test]
fn the_menu_works_through_a_pipe() {
    let directory = tempfile::tempdir().expect("a directory");
    let broker = Broker::start(vec![
        ("GET /v1/status", 200, status(directory.path())),
        ("POST /v1/policy/plan", 200, plan(&[fate("force")])),
        (
            "POST /v1/hot-reload",
            200,
            result("applied", "api", &[fate("force")]),
        ),
    ]);
    let output = broker.run(&["reload", "--interactive"], "p\nz\na\nn\na\ny\nq\n", &[]);
    let shown = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(shown.contains("generation 4 (aaaa) is in force"), "{shown}");
    assert!(shown.contains("reload --confirm cafecafecafe"), "{shown}");
    assert!(shown.contains("`z` is nothing to choose"), "{shown}");
    assert!(shown.contains("force  l-1  comfy"), "{shown}");
    assert!(
        text(&output.stderr).contains("nothing changed"),
        "{output:?}"
    );
    assert_eq!(
        broker.asked("POST /v1/hot-reload").len(),
        1,
        "no and then yes"
    );
}

#[test]
fn an_edit_is_checked_planned_saved_and_loaded() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("default.toml");
    fs::write(&file, "schema = 1\n").expect("writes");
    // Each time it runs it appends a line.
    let editor = [("VISUAL", ""), ("EDITOR", "printf 'x\\n' >>")];
    let answers = |plans: Vec<Value>| {
        let mut answers = vec![("GET /v1/status", 200, status(directory.path()))];
        answers.extend(
            plans
                .into_iter()
                .map(|plan| ("POST /v1/policy/plan", 200, plan)),
        );
        answers.push(("POST /v1/hot-reload", 200, result("applied", "api", &[])));
        answers
    };
    let names = || fs::read_dir(directory.path()).expect("a directory").count();

    let broker = Broker::start(answers(vec![broken_plan()]));
    let output = broker.run(&["policy", "edit"], "x\n", &editor);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read_to_string(&file).expect("there"), "schema = 1\n");

    let broker = Broker::start(answers(vec![broken_plan(), plan(&[fate("drain")])]));
    let output = broker.run(&["policy", "edit"], "e\ns\n", &editor);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        fs::read_to_string(&file).expect("there"),
        "schema = 1\nx\nx\n",
        "edited again"
    );
    let load = &broker.asked("POST /v1/hot-reload")[0];
    assert_eq!(load.body, json!({"confirm": PLAN}));

    let broker = Broker::start(answers(vec![plan(&[])]));
    let output = broker.run(&["policy", "edit"], "", &[("VISUAL", "true")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        text(&output.stdout).contains("nothing was changed"),
        "{output:?}"
    );

    let output = broker.run(&["policy", "edit"], "", &[("VISUAL", "false")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(names(), 1, "no draft is left");

    // A broker that cannot say is no reason to lose what was written.
    let broker = Broker::start(vec![("GET /v1/status", 200, status(directory.path()))]);
    let output = broker.run(&["policy", "edit"], "e\nx\n", &editor);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(
        broker.asked("POST /v1/policy/plan").len(),
        2,
        "edited again"
    );
    assert_eq!(names(), 1, "no draft is left");

    // What the broker does not read is no part of the set.
    let ignored = directory.path().join("50-ignored.toml");
    fs::write(&ignored, "y\n").expect("writes");
    let check = json!({
        "ok": true, "hash": "bbbb", "in_force": false, "files": [file], "changes": ["x"],
        "diagnostics": [],
    });
    let mut answered = answers(vec![broken_plan()]);
    answered.push(("POST /v1/policy/check", 200, check));
    let broker = Broker::start(answered);
    let output = broker.run(&["policy", "edit"], "x\n", &editor);
    assert!(text(&output.stderr).contains("policy diff"), "{output:?}");
    let planned = &broker.asked("POST /v1/policy/plan")[0].body["files"];
    assert_eq!(planned.as_array().map(Vec::len), Some(1), "{planned}");
    fs::remove_file(&ignored).expect("it is there");

    // Nor is somebody else's save meanwhile: the draft stays.
    let both = format!("printf 'y\\n' >> '{}'; printf 'x\\n' >>", file.display());
    let broker = Broker::start(answers(vec![plan(&[])]));
    let output = broker.run(&["policy", "edit"], "", &[("VISUAL", both.as_str())]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("was changed by somebody else"), "{said}");
    assert!(said.contains("what you wrote is in"), "{said}");
    assert_eq!(names(), 2, "the draft is left");
}

#[test]
fn overrides_are_sent_with_their_time() {
    let broker = Broker::start(vec![(
        "PUT /v1/policy/overrides",
        200,
        result("applied", "override", &[]),
    )]);
    let set = [
        "policy",
        "override",
        "set",
        "queue.order=fifo",
        "--for",
        "2h",
    ];
    assert_eq!(broker.run(&set, "", &[]).status.code(), Some(0));
    let clear = ["policy", "override", "clear"];
    assert_eq!(broker.run(&clear, "", &[]).status.code(), Some(0));
    let bodies: Vec<Value> = broker
        .asked("PUT /v1/policy/overrides")
        .into_iter()
        .map(|asked| asked.body)
        .collect();
    assert_eq!(
        bodies,
        [
            json!({"set": {"queue.order": "fifo"}, "expires_in": "7200s"}),
            json!({"set": {}})
        ]
    );
}

#[test]
fn a_difference_on_disk_exits_with_one() {
    for (in_force, code) in [(true, 0), (false, 1)] {
        let changes: &[&str] = if in_force {
            &[]
        } else {
            &["queue.order: fifo -> priority"]
        };
        let check = json!({
            "ok": true, "hash": "bbbb", "in_force": in_force, "files": [], "changes": changes,
            "diagnostics": [],
        });
        let broker = Broker::start(vec![("POST /v1/policy/check", 200, check)]);
        let output = broker.run(&["policy", "diff"], "", &[]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}
