//! Who gets through the guard: hosts, origins, methods and tokens, all with all, against one short rule.

use axum::http::Method;
use serde_json::json;

use crate::support::{Call, Server, call, far, get, near, operator, post, user};

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

/// What of the policy everybody may ask who may read, and what only operators may do.
const POLICY_ROUTES: [(Method, &str, bool); 11] = [
    (Method::GET, "/v1/policy", true),
    (Method::GET, "/v1/hot-reload", true),
    (Method::POST, "/v1/policy/check", true),
    (Method::POST, "/v1/policy/plan", true),
    (Method::POST, "/v1/policy/explain", true),
    (Method::POST, "/v1/hot-reload", false),
    (Method::PUT, "/v1/hot-reload", false),
    (Method::PUT, "/v1/policy", false),
    (Method::PUT, "/v1/policy/overrides", false),
    (Method::POST, "/v1/policy/rollback", false),
    (Method::POST, "/v1/emergency-release", false),
];

#[tokio::test]
async fn who_may_ask_about_the_policy_and_who_may_change_it() {
    let strict = Server::strict().await;
    let dev = Server::dev().await;
    let right = strict.token.clone();
    for (method, path, is_question) in POLICY_ROUTES {
        let empty = json!({});
        let call = || match method {
            Method::GET => call(method.clone(), path),
            _ => call(method.clone(), path).json(&empty),
        };
        let question = |otherwise: u16| (!is_question).then_some(otherwise);
        for (who, server, call, refused) in [
            ("loopback", &strict, call(), question(401)),
            (
                "a user",
                &strict,
                call().from(user("ann", 1001)),
                question(403),
            ),
            ("an admin", &strict, call().from(operator()), None),
            ("the token", &strict, call().bearer(&right), None),
            (
                "the token, from afar",
                &strict,
                call().from(far()).bearer(&right),
                None,
            ),
            ("a wrong token", &strict, call().bearer("wrong"), Some(401)),
            ("afar", &strict, call().from(far()), Some(401)),
            ("loopback in dev mode", &dev, call(), None),
            ("afar in dev mode", &dev, call().from(far()), Some(401)),
        ] {
            let reply = server.send(call).await;
            let status = reply.status.as_u16();
            let found = Some(status).filter(|status| [401, 403].contains(status));
            assert_eq!(found, refused, "{method} {path} by {who}: {}", reply.text);
            assert!(status < 500, "{method} {path} by {who}: {}", reply.text);
        }
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
