//! A headless Chromium, driven over a pair of pipes with its own protocol.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::patience::{SOON, eventually};
use crate::process::Process;

/// A browser without a window.
#[derive(Debug)]
pub struct Browser {
    orders: File,
    news: Receiver<Value>,
    last: u64,
    said: Vec<String>,
    _process: Process,
    _dir: TempDir,
}

/// One page in it.
#[derive(Clone, Debug)]
pub struct Tab {
    session: String,
}

/// Descriptors 3 and 4 are where Chromium expects its pipes; a shell puts them there.
const LAUNCH: &str = "exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage \
    --window-size=1280,1500 --user-data-dir=\"$1/profile\" --remote-debugging-pipe \
    3<>\"$1/orders\" 4<>\"$1/news\"";

impl Browser {
    /// Starts one.
    ///
    /// # Panics
    /// If it does not come up; Debian's package `chromium` is needed.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let pipe = |name: &str| {
            let path = dir.path().join(name);
            let made = Command::new("mkfifo").arg(&path).status();
            assert!(made.is_ok_and(|status| status.success()), "mkfifo");
            // Open for both directions: opening does not wait for the other end.
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.expect("it was just made")
        };
        let (orders, news) = (pipe("orders"), pipe("news"));
        let mut command = Command::new("sh");
        command.arg("-c").arg(LAUNCH).arg("sh").arg(dir.path());
        command.env("HOME", dir.path());
        let process = Process::start(command, dir.path());
        Self {
            orders,
            news: listen(news),
            last: 0,
            said: Vec::new(),
            _process: process,
            _dir: dir,
        }
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) -> Tab {
        let target = self.order(None, "Target.createTarget", json!({"url": url}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.order(None, "Target.attachToTarget", target);
        let session = session["sessionId"].as_str().expect("a session").to_owned();
        self.order(Some(&session), "Runtime.enable", json!({}));
        Tab { session }
    }

    /// What an expression is in a page, null if that cannot be said; a promise is waited for.
    pub fn evaluate(&mut self, tab: &Tab, expression: &str) -> Value {
        let asked = json!({
            "expression": expression, "returnByValue": true, "awaitPromise": true, "userGesture": true,
        });
        // A page on its way to another has no values.
        let answer = self.try_order(Some(&tab.session), "Runtime.evaluate", asked);
        answer.map_or(Value::Null, |answer| answer["result"]["value"].clone())
    }

    /// Waits until an expression is true in a page.
    pub fn until(&mut self, tab: &Tab, expression: &str) {
        let text = "document.body ? document.body.innerText : ''";
        let mut last = Value::Null;
        let end = std::time::Instant::now() + SOON;
        while self.evaluate(tab, expression) != Value::Bool(true) {
            last = self.evaluate(tab, text);
            let said = &self.said;
            assert!(
                std::time::Instant::now() < end,
                "never `{expression}`: {last:#}\nconsole: {said:#?}"
            );
            thread::sleep(std::time::Duration::from_millis(20));
        }
        drop(last);
    }

    /// Waits until a page shows a text.
    pub fn until_shown(&mut self, tab: &Tab, text: &str) {
        let text = Value::from(text);
        self.until(
            tab,
            &format!("!!document.body && document.body.innerText.includes({text})"),
        );
    }

    /// What pages wrote on their consoles so far.
    pub fn console(&self) -> &[String] {
        &self.said
    }

    /// Saves what a page looks like.
    pub fn picture(&mut self, tab: &Tab, path: &Path) {
        let picture = self.order(
            Some(&tab.session),
            "Page.captureScreenshot",
            json!({"format": "png"}),
        );
        let data = picture["data"].as_str().expect("a picture");
        let bytes = STANDARD.decode(data).expect("Chromium writes base64");
        std::fs::write(path, bytes).expect("the directory is writable");
    }

    fn order(&mut self, session: Option<&str>, method: &str, parameters: Value) -> Value {
        let done = self.try_order(session, method, parameters);
        done.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn try_order(
        &mut self,
        session: Option<&str>,
        method: &str,
        parameters: Value,
    ) -> Result<Value, Value> {
        self.last += 1;
        let mut order = json!({"id": self.last, "method": method, "params": parameters});
        if let Some(session) = session {
            order["sessionId"] = Value::from(session);
        }
        let mut line = order.to_string().into_bytes();
        line.push(0);
        self.orders.write_all(&line).expect("the browser reads");
        eventually(method, || {
            let news = self
                .news
                .recv_timeout(SOON)
                .expect("the browser answers; is Debian's package `chromium` installed?");
            if news["id"] == self.last {
                let failed = !news["error"].is_null();
                return Some(if failed {
                    Err(news["error"].clone())
                } else {
                    Ok(news["result"].clone())
                });
            }
            self.note(&news);
            None
        })
    }

    fn note(&mut self, news: &Value) {
        let arguments = &news["params"]["args"];
        match news["method"].as_str() {
            Some("Runtime.consoleAPICalled") => {
                let words = arguments.as_array().into_iter().flatten();
                let words = words.map(|word| {
                    word["value"]
                        .as_str()
                        .map_or(word.to_string(), str::to_owned)
                });
                self.said.push(words.collect::<Vec<_>>().join(" "));
            }
            Some("Runtime.exceptionThrown") => self.said.push(news["params"].to_string()),
            _ => {}
        }
    }
}

/// Messages end with a zero byte.
fn listen(news: File) -> Receiver<Value> {
    let (sender, messages) = channel();
    thread::spawn(move || {
        for message in BufReader::new(news).split(0).map_while(Result::ok) {
            let message = serde_json::from_slice(&message).expect("Chromium writes JSON");
            if sender.send(message).is_err() {
                return;
            }
        }
    });
    messages
}
