//! The page of the broker and its module for other pages, in a real browser.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use gpu_manager_tests::{Browser, Host, POLICY, program};
use serde_json::json;

#[test]
fn the_page_shows_cards_leases_and_reloads_as_they_happen() {
    let host = Host::with_cards(2);
    let broker = host.start();
    let first = broker.grant(&json!({"holder": {"name": "ann's notebook"}, "memory": "9GiB"}));
    let mut browser = Browser::start();
    let page = browser.open(&broker.url());
    browser.until_shown(&page, "sim-1");
    browser.until_shown(&page, "ann's notebook");

    broker.grant(&json!({"holder": {"name": "<img src=x onerror=alert(1)>"}, "exclusive": true}));
    browser.until_shown(&page, "<img src=x onerror=alert(1)>");
    let waiter =
        broker.wait_beside(&json!({"holder": {"name": "patient"}, "devices": 2, "wait": "10m"}));
    browser.until_shown(&page, "patient");
    host.write_policy(&format!("{POLICY}[queue]\norder = 'fifo'\n"));
    browser.until_shown(&page, "queue.order: priority -> fifo");
    host.write_policy("schema = 1\n[queu]\n");
    browser.until_shown(&page, "queu");
    browser.until(
        &page,
        "document.getElementById('reload-result').innerText.includes('default.toml:2:2')",
    );
    let picture = program()
        .ancestors()
        .nth(2)
        .expect("target/debug/gpu-manager")
        .join("page.png");
    browser.picture(&page, &picture);

    broker.release(&first);
    browser.until(&page, "!document.body.innerText.includes(\"ann's notebook\") || document.body.innerText.includes('lease ended') || document.body.innerText.includes('is over')");
    assert!(
        browser.console().iter().all(|line| !line.contains("rror")),
        "{:?}",
        browser.console()
    );
    let elsewhere = browser.evaluate(
        &page,
        "performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith(location.origin) && !name.startsWith('data:'))",
    );
    assert_eq!(elsewhere, json!([]), "no request to anywhere else");
    drop(broker);
    drop(waiter.join());
}

#[test]
fn a_button_of_the_page_reloads_the_policy() {
    let host = Host::with_cards(1).flags(&["--no-reload"]);
    let broker = host.start();
    let mut browser = Browser::start();
    let page = browser.open(&broker.url());
    browser.until_shown(&page, "sim-0");
    let generation = broker.policy().generation;
    host.write_policy(&format!("{POLICY}[queue]\norder = 'fifo'\n"));
    browser.until(&page, "(document.getElementById('reload').click(), true)");
    broker.until_generation(generation + 1);
    browser.until_shown(&page, "queue.order: priority -> fifo");
}

#[test]
fn a_page_of_a_developer_reloads_the_policy_and_a_strangers_cannot() {
    let own_page = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = own_page.local_addr().unwrap();
    let settings = format!("[http]\nallowed_origins = ['http://{address}']\n");
    let host = Host::with_cards(1)
        .flags(&["--no-reload"])
        .settings(&settings);
    let broker = host.start();
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let stranger_address = stranger.local_addr().unwrap();
    for listener in [own_page, stranger] {
        let html = format!(
            "<!doctype html><title>app</title><script src='{}/gpu-hot-reloader.js'></script>",
            broker.url()
        );
        thread::spawn(move || serve(&listener, &html));
    }
    let generation = broker.policy().generation;
    host.write_policy(&format!("{POLICY}[queue]\norder = 'fifo'\n"));

    let mut browser = Browser::start();
    let open = |browser: &mut Browser, address: SocketAddr| {
        let tab = browser.open(&format!("http://{address}/"));
        browser.until(&tab, "typeof window.triggerGPUHotReload === 'function'");
        tab
    };
    let page = open(&mut browser, stranger_address);
    let refused = browser.evaluate(&page, "window.triggerGPUHotReload()");
    assert!(refused.is_null(), "{refused}");
    assert_eq!(
        broker.policy().generation,
        generation,
        "a page that is not listed changes nothing"
    );

    let page = open(&mut browser, address);
    assert_eq!(
        browser.evaluate(&page, "window.setGPUHotReloadEnabled(false)"),
        json!(false)
    );
    assert!(
        browser
            .evaluate(&page, "window.triggerGPUHotReload()")
            .is_null(),
        "it is off"
    );
    assert_eq!(broker.policy().generation, generation);
    assert_eq!(
        browser.evaluate(&page, "window.setGPUHotReloadEnabled(true)"),
        json!(true)
    );
    let result = browser.evaluate(&page, "window.triggerGPUHotReload()");
    assert_eq!(
        (&result["outcome"], &result["generation"]),
        (&json!("applied"), &json!(generation + 1)),
        "{result}"
    );
    assert_eq!(broker.policy().generation, generation + 1);
    let said = browser.console().join("\n");
    assert!(
        said.contains("[gpu-hot-reload]") && said.contains("queue.order: priority -> fifo"),
        "{said}"
    );
}

/// A web server of one page.
fn serve(listener: &TcpListener, html: &str) {
    for mut stream in listener.incoming().map_while(Result::ok) {
        let mut request = [0; 4096];
        // One read is a whole request of this browser; what is in it does not matter.
        let _ = stream.read(&mut request);
        let length = html.len();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close";
        let _ = write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{html}");
    }
}
