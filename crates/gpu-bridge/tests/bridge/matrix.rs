//! Who gets through the guard: hosts, origins, methods and tokens, all with all, against one short rule.

use axum::http::Method;
use serde_json::json;

use crate::support::{Call, Server, call, far, get, near, operator, post};

const HOSTS: [(&str, bool); 8] = [
    ("localhost:8080", true),
    ("127.0.0.1:8080", true),
    ("[::1]:9", true),
    ("evil.example", false),
    ("localhost.evil.example:8080", false),
    ("0.0.0.0:8080", false),
    ("[::]:8080", false),
    ("10.0.0.1:8080", false),
];

/// The one page of another origin that the operator listed.
const LISTED: &str = "http://app.lab:3000";

/// Beside the listed one, only that of the host itself may call.
const ORIGINS: [Option<&str>; 10] = [
    None,
    Some("http://localhost:8080"),
    Some(LISTED),
    Some("http://localhost:3000"),
    Some("http://127.0.0.1:8080"),
    Some("https://localhost:8080"),
    Some("http://app.lab:3000.evil.example"),
    Some("http://evil.example"),
    Some("http://0.0.0.0:8080"),
    Some("null"),
];

const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    None,
    Wrong,
    Right,
}

#[tokio::test]
async fn every_host_origin_method_and_token() {
    let server = Server::strict().await;
    for path in ["/v1/leases", "/v1/hot-reload", "/v1/no-such-path"] {
        for (host, known) in HOSTS {
            for origin in ORIGINS {
                for method in METHODS {
                    for token in [Token::None, Token::Wrong, Token::Right] {
                        let reply = server
                            .send(attempt(&server, &method, path, host, origin, token))
                            .await;
                        let case = format!(
                            "{method} {path} host {host} origin {origin:?} token {token:?}: {}",
                            reply.text
                        );
                        let status = reply.status.as_u16();
                        let refused =
                            Some(status).filter(|status| [401, 403, 421].contains(status));
                        assert_eq!(
                            refused,
                            expected(host, known, origin, &method, token),
                            "{case}"
                        );
                        assert!(status < 500, "{case}");
                        let readable = reply.headers.contains_key("access-control-allow-origin");
                        assert_eq!(
                            readable,
                            known && origin == Some(LISTED),
                            "{case}: who may read the answer"
                        );
                    }
                }
            }
        }
    }
}

/// The rule in short: the host, then the page, then the token.
fn expected(
    host: &str,
    known: bool,
    origin: Option<&str>,
    method: &Method,
    token: Token,
) -> Option<u16> {
    let own = |origin: &str| origin == LISTED || origin == format!("http://{host}");
    match token {
        _ if !known => Some(421),
        _ if !origin.is_none_or(own) => Some(403),
        Token::Wrong => Some(401),
        Token::None if !method.is_safe() => Some(401),
        Token::None | Token::Right => None,
    }
}

fn attempt(
    server: &Server,
    method: &Method,
    path: &str,
    host: &str,
    origin: Option<&str>,
    token: Token,
) -> Call {
    let mut call = call(method.clone(), path).header("host", host).from(near());
    if let Some(origin) = origin {
        call = call.header("origin", origin);
    }
    match token {
        Token::None => call,
        Token::Wrong => call.bearer("wrong"),
        Token::Right => call.bearer(&server.token),
    }
}

#[tokio::test]
async fn from_afar_only_health_needs_no_token() {
    let server = Server::dev().await;
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 401),
        ("/health", 401),
        ("/", 401),
        ("/page.js", 401),
        ("/gpu-hot-reloader.js", 401),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/v1/status", 401),
        ("/v1/events", 401),
        ("/no/such/path", 401),
    ] {
        assert_eq!(
            server.send(get(path).from(far())).await.status.as_u16(),
            status,
            "{path}"
        );
    }
    assert_eq!(
        server
            .send(get("/v1/status").from(far()).bearer(&server.token))
            .await
            .status,
        200
    );
    assert_eq!(
        server
            .send(post("/v1/leases").from(far()).json(&json!({})))
            .await
            .status,
        401
    );
}

#[tokio::test]
async fn a_listed_origin_may_ask_first_and_others_may_not() {
    let server = Server::strict().await;
    let preflight = |origin: &str| {
        call(Method::OPTIONS, "/v1/leases")
            .header("origin", origin)
            .header("sec-fetch-site", "cross-site")
            .header("access-control-request-method", "POST")
    };
    let reply = server.send(preflight(LISTED)).await;
    assert_eq!(reply.status, 204);
    assert_eq!(reply.headers["access-control-allow-origin"], LISTED);
    assert_eq!(reply.headers["vary"], "origin");
    assert!(
        reply.headers["access-control-allow-headers"]
            .to_str()
            .expect("text")
            .contains("x-lease-secret")
    );
    assert!(
        !reply
            .headers
            .contains_key("access-control-allow-credentials")
    );
    let reply = server.send(preflight("http://evil.example")).await;
    assert_eq!(reply.code(), "origin_refused");
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
    let own = server
        .send(preflight("http://localhost:8080").header("sec-fetch-site", "same-origin"))
        .await;
    assert_eq!(
        own.status, 405,
        "a page of the broker itself has nothing to ask"
    );
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_whatever_it_sends() {
    let server = Server::dev().await;
    for method in METHODS {
        for site in ["cross-site", "cross-origin", "x"] {
            let call = call(method.clone(), "/v1/leases")
                .header("sec-fetch-site", site)
                .from(operator());
            let reply = server.send(call).await;
            assert_eq!(reply.status, 403, "{method} {site}");
        }
    }
}

#[tokio::test]
async fn every_answer_forbids_guessing_its_kind() {
    let server = Server::dev().await;
    for path in [
        "/",
        "/page.css",
        "/page.js",
        "/gpu-hot-reloader.js",
        "/v1/status",
        "/no",
    ] {
        let reply = server.send(get(path)).await;
        assert_eq!(reply.headers["x-content-type-options"], "nosniff", "{path}");
    }
    let page = server.send(get("/")).await;
    let may = page.headers["content-security-policy"]
        .to_str()
        .expect("text");
    assert!(
        may.starts_with("default-src 'none'") && !may.contains("unsafe"),
        "{may}"
    );
    assert!(
        !page.text.contains("http://")
            || page.text.matches("http://").count()
                == page.text.matches("http://www.w3.org").count(),
        "no outside request"
    );
    assert!(
        !page.text.contains("<style") && !page.text.contains("onclick"),
        "nothing that the policy forbids"
    );
}
